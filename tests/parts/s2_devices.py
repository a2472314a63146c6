"""Simulated devices, on the connection that s2-python has for resource managers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self
from uuid import UUID, uuid4

from s2python.common import CommodityQuantity, Duration, Role
from s2python.connection.asset_details import AssetDetails
from s2python.connection.async_ import CouldNotReceiveStatusReceptionError, S2AsyncConnection
from s2python.connection.async_.control_type.class_based import (
    FRBCControlType,
    NoControlControlType,
    ResourceManagerHandler,
    S2ControlType,
)
from s2python.connection.async_.medium.s2_medium import MediumClosedConnectionError
from s2python.connection.async_.medium.websocket import WebsocketClientMedium
from s2python.s2_parser import S2Parser

from tests.parts.s2_messages import example

QUARTER = timedelta(minutes=15)
POWER = CommodityQuantity.ELECTRIC_POWER_L1
DISCONNECTED = (MediumClosedConnectionError, CouldNotReceiveStatusReceptionError)


class Device:
    """A device that tells what its active control type calls for, until it is stopped or disconnected."""

    role: ClassVar[str]
    provides_forecast = False

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        name: str,
        resource_id: str | None = None,
        every: float = 1.0,
    ) -> None:
        self.every = every
        self.control_type: str | None = None
        self.active = asyncio.Event()
        self._medium = WebsocketClientMedium(url, bearer_token=token)
        self._details = AssetDetails(
            resource_id=UUID(resource_id) if resource_id else uuid4(),
            name=name,
            roles=[Role(role=self.role, commodity="ELECTRICITY")],
            instruction_processing_delay=Duration(root=0),
            provides_forecast=self.provides_forecast,
            provides_power_measurements=[POWER],
        )
        self._telling: list[asyncio.Task] = []

    async def __aenter__(self) -> Self:
        await self._medium.connect()
        self._connection = S2AsyncConnection(self._medium)
        ResourceManagerHandler(self.control_types(), self._details).register_handlers(self._connection)
        self._running = asyncio.create_task(self._connection.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.stop()
        await self._medium.disconnect()
        with suppress(*DISCONNECTED):
            await self._running
        for telling in self._telling:
            with suppress(asyncio.CancelledError):
                await telling

    def control_types(self) -> list[S2ControlType]:
        """Return the control types the device offers, the preferred one first."""
        raise NotImplementedError

    def activate(self, control_type: str, messages: AsyncIterator[dict]) -> None:
        """Tell the CEM the messages, as they come."""
        self.control_type = control_type
        self.active.set()
        self._telling.append(asyncio.create_task(self._tell(messages)))

    def deactivate(self) -> None:
        """Fall silent."""
        self.control_type = None
        self.active.clear()
        self._telling[-1].cancel()

    async def _tell(self, messages: AsyncIterator[dict]) -> None:
        with suppress(*DISCONNECTED):
            async for message in messages:
                await self._connection.send_msg_and_await_reception_status(
                    S2Parser.parse_as_any_message(message)
                )


class Meter(Device):
    """A consumer that cannot be controlled: it forecasts its power in W once, then measures it."""

    role = "ENERGY_CONSUMER"
    provides_forecast = True

    def __init__(
        self,
        url: str,
        *,
        power: Callable[[datetime], float] = lambda _: 500.0,
        forecast: Callable[[datetime], float] | None = None,
        **options,
    ) -> None:
        super().__init__(url, **options)
        self.power = power
        self.forecast = forecast or power

    def control_types(self) -> list[S2ControlType]:
        """Offer no control."""
        return [_NotControlable(self, self._powers)]

    async def _powers(self) -> AsyncIterator[dict]:
        start = datetime.now(UTC)
        start -= (start - datetime.min.replace(tzinfo=UTC)) % QUARTER
        yield example(
            "PowerForecast",
            start_time=start.isoformat(),
            elements=[
                {
                    "duration": QUARTER // timedelta(milliseconds=1),
                    "power_values": [
                        {"value_expected": self.forecast(start + i * QUARTER), "commodity_quantity": POWER}
                    ],
                }
                for i in range(96)
            ],
        )
        while True:
            now = datetime.now(UTC)
            yield example(
                "PowerMeasurement",
                measurement_timestamp=now.isoformat(),
                values=[{"value": self.power(now), "commodity_quantity": POWER}],
            )
            await asyncio.sleep(self.every)


class Battery(Device):
    """The battery of the examples: it stays idle at `fill_level` (%) and keeps the instructions it gets.

    Without control it says nothing.
    """

    role = "ENERGY_STORAGE"

    def __init__(self, url: str, *, fill_level: float = 50.0, **options) -> None:
        super().__init__(url, **options)
        self.fill_level = fill_level
        self.instructions: list[dict] = []

    def control_types(self) -> list[S2ControlType]:
        """Offer control by fill rate, or none."""
        return [_FillRateBased(self, self._states), _NotControlable(self, self._nothing)]

    async def _states(self) -> AsyncIterator[dict]:
        now = datetime.now(UTC).isoformat()
        description = example("FRBC.SystemDescription", valid_from=now)
        actuator = description["actuators"][0]
        yield description
        yield {
            "message_type": "FRBC.ActuatorStatus",
            "message_id": str(uuid4()),
            "actuator_id": actuator["id"],
            "active_operation_mode_id": actuator["operation_modes"][0]["id"],
            "operation_mode_factor": 0,
        }
        while True:
            yield example("FRBC.StorageStatus", present_fill_level=self.fill_level)
            await asyncio.sleep(self.every)

    async def _nothing(self) -> AsyncIterator[dict]:
        for message in ():
            yield message


class _OfDevice:
    """What our control types share: the device tells `messages` while one is active."""

    def __init__(self, device: Device, messages: Callable[[], AsyncIterator[dict]]) -> None:
        self.device = device
        self.messages = messages

    async def activate(self, _: S2AsyncConnection) -> None:
        self.device.activate(self.get_protocol_control_type().value, self.messages())

    async def deactivate(self, _: S2AsyncConnection) -> None:
        self.device.deactivate()


class _NotControlable(_OfDevice, NoControlControlType):
    pass


class _FillRateBased(_OfDevice, FRBCControlType):
    async def handle_instruction(self, _: S2AsyncConnection, message, send_okay) -> None:
        self.device.instructions.append(message.to_json_dict())
        await send_okay()
