"""Fill a new database: `python seed.py <run folder>`. Runs in FlexMeasures' environment.

Leaves the ids of what it made in accounts.json.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import services

TIMEZONE = "Europe/Amsterdam"
ACCOUNTS = {
    "home": {"name": "Test site account", "email": "battery@example.org", "limit": None},
    "foreign": {"name": "Foreign account", "email": "foreign@example.org", "limit": None},
    "limited": {"name": "Limited account", "email": "limited@example.org", "limit": "2 per hour"},
}


def main(run: Path) -> None:
    """Make the database, its tables and its accounts."""
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
            accounts = {key: add_account(key, **account) for key, account in ACCOUNTS.items()}
            app.db.session.commit()
            app.db.engine.dispose()
        (run / "accounts.json").write_text(json.dumps(accounts))
    finally:
        services.stop(database, signal.SIGINT)


def migrate() -> None:
    """Make the tables, and the rows that each server has."""
    import flask_migrate
    from flexmeasures.data import db
    from flexmeasures.data.scripts.data_gen import populate_initial_structure

    import flexmeasures

    flask_migrate.upgrade(directory=str(Path(flexmeasures.__file__).parent / "data" / "migrations"))
    populate_initial_structure(db)


def add_account(key: str, name: str, email: str, limit: str | None) -> dict:
    """Add an account with a user, and a site with batteries and prices; return what to know of it."""
    from flask_security.utils import hash_password
    from flexmeasures.data import db
    from flexmeasures.data.models.user import Account, Plan, Role, User
    from flexmeasures.data.services.data_sources import get_or_create_source

    plan = Plan(name=f"{key} plan", trigger_rate_limit=limit) if limit else None
    account = Account(name=name, plan=plan)
    role = db.session.query(Role).filter_by(name="account-admin").one()
    password = f"{email.split('@')[0]}-password"
    user = User(
        email=email, username=key, password=hash_password(password), active=True,
        fs_uniquifier=uuid4().hex, account=account, flexmeasures_roles=[role],
    )  # fmt: skip
    db.session.add_all([account, user])
    db.session.flush()
    get_or_create_source(user)
    return {"username": email, "password": password, "account": account.id} | add_site(account)


def add_site(account) -> dict:
    """Add a building with three batteries and two price sensors; return their ids."""
    site = add_asset(account, "Site", "building")
    batteries = {
        minutes: add_asset(account, f"Battery {minutes}", "battery", site) for minutes in (15, 5, 60)
    }
    power = {"unit": "kW", "attributes": {"consumption_is_positive": True}}
    return {
        "site": site.id,
        "battery": batteries[15].id,
        "power_sensor": add_sensor(batteries[15], "power", 15, **power),
        "power_sensor_5min": add_sensor(batteries[5], "power", 5, **power),
        "power_sensor_60min": add_sensor(batteries[60], "power", 60, **power),
        "soc_sensor": add_sensor(batteries[15], "state of charge", 0, unit="kWh"),
        "price_sensor": add_sensor(site, "day-ahead price", 60, unit="EUR/kWh"),
        "empty_price_sensor": add_sensor(site, "price without data", 60, unit="EUR/kWh"),
    }


def add_asset(account, name: str, asset_type: str, parent=None):
    """Add an asset to an account."""
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


def add_sensor(asset, name: str, minutes: int, unit: str, attributes: dict | None = None) -> int:
    """Add a sensor to an asset, and return its id."""
    from flexmeasures.data import db
    from flexmeasures.data.models.time_series import Sensor

    sensor = Sensor(
        name=name, generic_asset=asset, unit=unit, timezone=TIMEZONE,
        event_resolution=timedelta(minutes=minutes), attributes=attributes or {},
    )  # fmt: skip
    db.session.add(sensor)
    db.session.flush()
    return sensor.id


if __name__ == "__main__":
    main(Path(sys.argv[1]))
