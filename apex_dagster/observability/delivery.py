"""Where alerts go: the log, and a webhook and a chat that reads Slack's format if there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import orjson
import structlog

from apex_dagster.observability.alerts import Notice, Severity

log = structlog.get_logger(__name__)

TIMEOUT_S = 10.0
_SIGNS: Mapping[Severity, str] = {
    "critical": ":rotating_light:",
    "high": ":red_circle:",
    "medium": ":large_orange_circle:",
    "low": ":large_yellow_circle:",
}


def to_log(notice: Notice) -> None:
    """One line, as severe as the alert."""
    say = log.critical if notice.severity == "critical" else log.error
    if notice.status == "resolved" or notice.severity == "low":
        say = log.warning
    say("alert", alert=notice.name, **{k: v for k, v in _plain(notice).items() if k != "name"})


def to_webhook(url: str) -> Callable[[Notice], None]:
    """The notice as JSON."""
    return lambda notice: _post(url, _plain(notice))


def to_slack(url: str) -> Callable[[Notice], None]:
    """A message in the format of Slack's incoming webhooks, which other chats read as well."""
    return lambda notice: _post(url, slack_message(notice))


def slack_message(notice: Notice) -> dict[str, Any]:
    """One block of text, and the same as the notification's line."""
    sign = ":white_check_mark:" if notice.status == "resolved" else _SIGNS[notice.severity]
    text = f"{sign} *{notice.name}* ({notice.severity}) is {notice.status}: {notice.summary}"
    return {"text": text, "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}}]}


def _plain(notice: Notice) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(orjson.dumps(notice.as_json(), option=orjson.OPT_UTC_Z))
    return plain


def _post(url: str, body: Mapping[str, Any]) -> None:
    """Raises RuntimeError without the address, which is a secret: who has it can write there."""
    headers = {"Content-Type": "application/json"}
    try:
        response = httpx.post(url, content=orjson.dumps(body), headers=headers, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        raise RuntimeError(f"the webhook gave no answer: {type(error).__name__}") from None
    if not response.is_success:
        raise RuntimeError(f"the webhook answered {response.status_code}")
