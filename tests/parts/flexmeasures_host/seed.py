"""Fill a new database: `python seed.py <run folder>`. Runs in FlexMeasures' environment.

Writes the ids of what it creates to accounts.json.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import services

TIMEZONE = "Europe/Amsterdam"
ACCOUNTS: dict[str, tuple[str, str, str | None]] = {
    "home": ("Test site account", "battery@example.org", None),
    "foreign": ("Foreign account", "foreign@example.org", None),
    "limited": ("Limited account", "limited@example.org", "2 per hour"),
}
"""The name, e-mail address and trigger limit of every account, by key."""


def main(run: Path) -> None:
    """Create the database, its tables and its accounts."""
    os.chdir(run)
    (run / "secrets.json").touch(mode=0o600)
    (run / "secrets.json").write_text(json.dumps(services.make_secrets()))
    postgres = services.Postgres(run)
    postgres.create()
    database = postgres.start()
    try:
        postgres.wait()
        app = services.create_app(run, postgres.uri, services.free_port(), "")
        with app.app_context():
            migrate()
            accounts = {key: add_account(key, *account) for key, account in ACCOUNTS.items()}
            app.db.session.commit()
            app.db.engine.dispose()
        (run / "accounts.json").write_text(json.dumps(accounts))
    finally:
        services.stop(database, signal.SIGINT)


def migrate() -> None:
    """Create the tables, and the rows that every server has."""
    import flask_migrate
    from flexmeasures.data import db
    from flexmeasures.data.scripts.data_gen import populate_initial_structure

    import flexmeasures

    flask_migrate.upgrade(directory=str(Path(flexmeasures.__file__).parent / "data" / "migrations"))
    populate_initial_structure(db)


def add_account(key: str, name: str, email: str, limit: str | None) -> dict[str, Any]:
    """Add an account with a user, and a site with batteries and prices; return its log-in and ids."""
    from flask_security.utils import hash_password
    from flexmeasures.data import db
    from flexmeasures.data.models.user import Account, Plan, Role, User
    from flexmeasures.data.services.data_sources import get_or_create_source

    plan = Plan(name=f"{key} plan", trigger_rate_limit=limit) if limit else None
    account = Account(name=name, plan=plan)
    role = db.session.query(Role).filter_by(name="account-admin").one()
    password = f"{email.split('@', maxsplit=1)[0]}-password"
    user = User(
        email=email, username=key, password=hash_password(password), active=True,
        fs_uniquifier=uuid4().hex, account=account, flexmeasures_roles=[role],
    )  # fmt: skip
    db.session.add_all([account, user])
    db.session.flush()
    get_or_create_source(user)
    return {"username": email, "password": password, "account": account.id} | add_site(account)


def add_site(account: Any) -> dict[str, int]:
    """Add a building with three batteries and two price sensors; return their ids."""
    site = add_asset(account, "Site", "building")
    batteries = {
        minutes: add_asset(account, f"Battery {minutes}", "battery", site) for minutes in (15, 5, 60)
    }

    def power(minutes: int) -> int:
        attributes = {"consumption_is_positive": True}
        return add_sensor(batteries[minutes], "power", minutes, "kW", attributes)

    return {
        "site": site.id,
        "battery": batteries[15].id,
        "power_sensor": power(15),
        "power_sensor_5min": power(5),
        "power_sensor_60min": power(60),
        "soc_sensor": add_sensor(batteries[15], "state of charge", 0, unit="kWh"),
        "price_sensor": add_sensor(site, "day-ahead price", 60, unit="EUR/kWh"),
        "empty_price_sensor": add_sensor(site, "price without data", 60, unit="EUR/kWh"),
    }


def add_asset(account: Any, name: str, asset_type: str, parent: Any = None) -> Any:
    """Add an asset to an account, and return it."""
    from flexmeasures.data import db
    from flexmeasures.data.models.generic_assets import GenericAsset, GenericAssetType

    asset = GenericAsset(
        name=name,
        generic_asset_type=db.session.query(GenericAssetType).filter_by(name=asset_type).one(),
        account_id=account.id,
        parent_asset_id=parent.id if parent else None,
    )
    db.session.add(asset)
    db.session.flush()
    return asset


def add_sensor(
    asset: Any, name: str, minutes: int, unit: str, attributes: dict[str, Any] | None = None
) -> int:
    """Add a sensor to an asset, and return its id."""
    from flexmeasures.data import db
    from flexmeasures.data.models.time_series import Sensor

    sensor = Sensor(
        name=name, generic_asset=asset, unit=unit, timezone=TIMEZONE,
        event_resolution=timedelta(minutes=minutes), attributes=attributes or {},
    )  # fmt: skip
    db.session.add(sensor)
    db.session.flush()
    sensor_id: int = sensor.id
    return sensor_id


if __name__ == "__main__":
    main(Path(sys.argv[1]))
