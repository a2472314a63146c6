"""FlexMeasures for pyscript: the services, and the app's start and stop."""

try:
    import flexmeasures.configuration as configuration
    import flexmeasures_home.app as home
    import flexmeasures_home.services as services
except ImportError as error:
    # No module of ours can notify the user. Once the app starts, it dismisses the notification.
    if "not allowed" in str(error):
        remedy = (
            "Set `allow_all_imports: true` under `pyscript:` in `configuration.yaml` (step 3 of README.md). "
            "If you added pyscript in the user interface, switch on *Allow All Imports?* there instead: "
            "Settings → Devices & services → Pyscript → Configure."
        )
    else:
        remedy = (
            "Copy the folders in `modules/` to `<config>/pyscript/modules/`, and `requirements.txt` to "
            "`<config>/pyscript/` (step 2 of README.md)."
        )
    persistent_notification.create(
        notification_id="flexmeasures_not_loaded",
        title="FlexMeasures",
        message=f"FlexMeasures could not be loaded: {error}.\n\n{remedy} Then restart Home Assistant.",
    )
    raise

try:
    section: dict[str, object] | None = pyscript.app_config
except NameError:
    section = None


@pyscript_compile
def new_app() -> home.App:
    """Read the section; as an argument it would be logged with its password, since pyscript logs calls."""
    given, mistakes = configuration.read(section)
    return home.App(configuration=given, mistakes=mistakes)


app = new_app()


@time_trigger("startup")
async def startup() -> None:
    """Start the app, instead of the one before a reload."""
    await home.swap_in(app)


@time_trigger("shutdown")
async def shutdown() -> None:
    """Stop the app, unless its successor has done so."""
    await home.swap_out(app)


@service("flexmeasures.trigger_and_get_schedule", supports_response="optional")
async def trigger_and_get_schedule(**data: object) -> object:
    """yaml
    name: Trigger and get schedule
    description: >-
      Asks FlexMeasures for the cheapest schedule of the device, waits for it, and shows it as
      sensor.flexmeasures_schedule. Positive is consumption.
    fields:
      soc_at_start:
        name: State of charge at start
        description: >-
          A number in soc_unit, text such as "5.2 kWh" or "80 %", or an entity that tells the present one,
          such as sensor.battery. Required unless soc_entity is configured.
        example: 5.2
        selector:
          text:
      soc_targets:
        name: SoC targets
        description: Wanted states of charge, each with a value and a datetime, or start and end.
        example: "[{value: 9, datetime: '2026-01-15T07:00:00+01:00'}]"
        selector:
          object:
      soc_minima:
        name: SoC minima
        description: Lowest wanted states of charge, in the form of the targets.
        example: "[{value: 2, start: '2026-01-15T17:00:00+01:00', end: '2026-01-15T21:00:00+01:00'}]"
        selector:
          object:
      soc_maxima:
        name: SoC maxima
        description: Highest wanted states of charge, in the form of the targets.
        example: "[{value: 8, datetime: '2026-01-15T12:00:00+01:00'}]"
        selector:
          object:
      start:
        name: Start
        description: Where the schedule starts, shifted up to the power sensor's resolution. Now by default.
        example: "2026-01-15T07:00:00+01:00"
        selector:
          datetime:
      duration:
        name: Duration
        description: ISO 8601. The configured schedule_duration by default.
        example: PT24H
        selector:
          text:
      flex_model:
        name: Flex-model
        description: FlexMeasures' own fields for the device, which prevail over the configured ones.
        example: "{prefer-charging-sooner: false}"
        selector:
          object:
      flex_context:
        name: Flex-context
        description: FlexMeasures' own fields for the site, which prevail over the configured ones.
        example: "{site-consumption-capacity: 5 kW}"
        selector:
          object:
    """
    return await services.run(app, "trigger_and_get_schedule", data)


@service("flexmeasures.post_measurements", supports_response="optional")
async def post_measurements(**data: object) -> object:
    """yaml
    name: Post measurements
    description: >-
      Posts values to a FlexMeasures sensor. While the server is away they wait in the outbox, which delivers
      them in order once it is back.
    fields:
      sensor_id:
        name: Sensor
        description: The number of the FlexMeasures sensor.
        required: true
        example: 12
        selector:
          number:
            min: 1
            mode: box
      values:
        name: Values
        description: A number, or a list of numbers, one after the other; null is a gap.
        example: "[1.5, 1.2, null, 0.8]"
        selector:
          object:
      entity_id:
        name: Entity
        description: Instead of values, an entity whose state is posted as it is now, in its own unit.
        example: sensor.grid_power
        selector:
          entity:
      start:
        name: Start
        description: When the first value starts. For one value, now by default.
        example: "2026-01-15T07:00:00+01:00"
        selector:
          datetime:
      duration:
        name: Duration
        description: >-
          ISO 8601, of all values together. By default each value stands for the sensor's resolution.
        example: PT1H
        selector:
          text:
      unit:
        name: Unit
        description: The unit of the values. The sensor's own by default.
        example: kW
        selector:
          text:
      positive:
        name: Positive
        description: >-
          Whether positive powers and energies are consumption (by default) or production. FlexMeasures gets
          them in the sign that its sensor has.
        example: production
        selector:
          select:
            options:
              - consumption
              - production
      prior:
        name: Prior
        description: When the values were known, for a forecast. For measurements, leave it out.
        example: "2026-01-15T06:00:00+01:00"
        selector:
          datetime:
    """
    return await services.run(app, "post_measurements", data)


@service("flexmeasures.get_measurements", supports_response="optional")
async def get_measurements(**data: object) -> object:
    """yaml
    name: Get measurements
    description: Returns what FlexMeasures holds of a sensor.
    fields:
      sensor_id:
        name: Sensor
        description: The number of the FlexMeasures sensor.
        required: true
        example: 12
        selector:
          number:
            min: 1
            mode: box
      start:
        name: Start
        description: From when, shifted down to the resolution.
        required: true
        example: "2026-01-15T07:00:00+01:00"
        selector:
          datetime:
      duration:
        name: Duration
        description: ISO 8601. A day by default.
        example: PT24H
        selector:
          text:
      unit:
        name: Unit
        description: The unit of the returned values. The sensor's own by default.
        example: kW
        selector:
          text:
      resolution:
        name: Resolution
        description: ISO 8601, from one value to the next. The sensor's own by default.
        example: PT15M
        selector:
          text:
      source:
        name: Source
        description: The number of a FlexMeasures data source, to return its values alone.
        example: 7
        selector:
          number:
            min: 1
            mode: box
    """
    return await services.run(app, "get_measurements", data)


@service("flexmeasures.change_control_type", supports_response="optional")
async def change_control_type(**data: object) -> object:
    """yaml
    name: Change control type
    description: >-
      Selects how an S2 device (its Resource Manager) is controlled. The choice lasts over reconnects and
      restarts. NO_SELECTION stops it.
    fields:
      control_type:
        name: Control type
        description: >-
          One that the Resource Manager offers: its state lists them as available_control_types. FRBC, OMBC,
          DDBC, PPBC and PEBC are accepted for the long names.
        required: true
        example: FILL_RATE_BASED_CONTROL
        selector:
          select:
            options:
              - FILL_RATE_BASED_CONTROL
              - OPERATION_MODE_BASED_CONTROL
              - DEMAND_DRIVEN_BASED_CONTROL
              - POWER_PROFILE_BASED_CONTROL
              - POWER_ENVELOPE_BASED_CONTROL
              - NOT_CONTROLABLE
              - NO_SELECTION
            custom_value: true
      resource_id:
        name: Resource
        description: >-
          The resource_id, or the name, of the Resource Manager. Required where more than one is connected.
        example: 3c1f1dbe-0b0c-4f0f-9d6e-0c3b5f0f5c0e
        selector:
          text:
    """
    return await services.run(app, "change_control_type", data)


@service("flexmeasures.send_frbc_instruction", supports_response="optional")
async def send_frbc_instruction(**data: object) -> object:
    """yaml
    name: Send FRBC instruction
    description: >-
      Tells an S2 device under fill rate based control which operation mode to go to. It is checked against
      what the device has told of itself. It holds until the next instruction of the plan, or the next plan.
    fields:
      resource_id:
        name: Resource
        description: >-
          The resource_id, or the name, of the Resource Manager. Required where more than one is connected.
        example: Home battery
        selector:
          text:
      actuator_id:
        name: Actuator
        description: The id, or the label, of the actuator. Required where the device has several.
        example: inverter
        selector:
          text:
      operation_mode:
        name: Operation mode
        description: The id, or the label, of the operation mode.
        required: true
        example: charge
        selector:
          text:
      operation_mode_factor:
        name: Operation mode factor
        description: From 0, the start of the mode's ranges, to 1, their end (the default).
        example: 0.5
        selector:
          number:
            min: 0
            max: 1
            step: 0.01
      execution_time:
        name: Execution time
        description: When the device is to execute it. Now by default.
        example: "2026-01-15T07:00:00+01:00"
        selector:
          datetime:
      abnormal_condition:
        name: Abnormal condition
        description: Whether this is an abnormal condition, in which other modes are permitted.
        example: false
        selector:
          boolean:
      id:
        name: ID
        description: The id of the instruction. That of the message by default, or a new one.
        example: 2fbe2bc1-c7b8-4c24-8d0b-9b969f01700d
        selector:
          text:
      message_id:
        name: Message ID
        description: The id of the message. That of the instruction by default.
        example: 7da886c7-9f1b-4cbd-9b5e-ea0431196df5
        selector:
          text:
    """
    return await services.run(app, "send_frbc_instruction", data)


@service("flexmeasures.call_cem_trigger_schedule", supports_response="optional")
async def call_cem_trigger_schedule(**data: object) -> object:
    """yaml
    name: Call CEM trigger schedule
    description: Plans an S2 device again now, together with all others of the site.
    fields:
      resource_id:
        name: Resource
        description: >-
          The resource_id, or the name, of the Resource Manager. Required where more than one is connected.
        example: Home battery
        selector:
          text:
    """
    return await services.run(app, "call_cem_trigger_schedule", data)


home.answer(app)
