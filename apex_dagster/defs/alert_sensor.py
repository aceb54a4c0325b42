"""The sensor that tells what is wrong, once when it begins and once when it is over."""

import dagster as dg

from apex_dagster.defs.resources import SagasResource


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells alerts that begin or end: to the log, and to APEX_ALERT_WEBHOOK_URL and"
    " APEX_ALERT_SLACK_URL.",
)
def alert_sensor(context: dg.SensorEvaluationContext, sagas: SagasResource) -> dg.SkipReason:
    """Evaluate all rules; it starts no runs."""
    app = sagas.application()
    for notice in app.alerts.evaluate(app.tell):
        say = context.log.error if notice.status == "firing" else context.log.info
        say(f"{notice.name} ({notice.severity}) is {notice.status}: {notice.summary}")
    firing = app.alerts.firing()
    names = ", ".join(notice.name for notice in firing[:5]) + (", …" if len(firing) > 5 else "")
    return dg.SkipReason(f"{len(firing)} alerts fire{f': {names}' if firing else ''}")
