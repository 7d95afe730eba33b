"""The `webhook` step: tell a client's server that its job has ended.

Signed as the Standard Webhooks specification says (standardwebhooks.com): headers `webhook-id`,
`webhook-timestamp` and, where the job names a secret, `webhook-signature` = `v1,` and the base64
HMAC-SHA256 of `id.timestamp.body`. The id is the same for every try, so receivers can ignore
doubles, and another one where a redriven job ends again. The body names the job; results are
fetched with `GET /v1/jobs/{id}`. Redirects are not followed: only who was named is told.
"""

import base64
import hashlib
import hmac
import json
import time

from shared.config import Settings
from shared.errors import InvalidInput, Permanent, Retryable
from shared.jobs import jobs
from workers import outbound
from workers.attempts.context import Context, Done, Handler


def deliver(context: Context) -> Done:
    with context.process.ledger.read() as session:
        job = jobs.get(session, context.claim.job_id)
        target, news = job.webhook, jobs.news(job)
    if target is None:
        return Done()
    now = int(time.time())
    event = {"type": "job.ended", "timestamp": news["finished_at"], "data": news}
    body = json.dumps(event, ensure_ascii=False)
    headers = {
        "content-type": "application/json",
        "user-agent": "Sluice (webhook)",
        "webhook-id": f"{job.id}-{context.claim.step_id}",
        "webhook-timestamp": str(now),
    }
    if target.get("secret"):
        headers["webhook-signature"] = sign(target["secret"], headers["webhook-id"], str(now), body)
    settings = context.process.settings
    try:
        status = outbound.within(
            lambda: post(target["url"], body.encode(), headers, settings),
            timeout_s=settings.webhook_timeout_s,
            what=target["url"],
            stop=context.stop,
        )
    except outbound.NotAllowed as error:
        raise Permanent(
            f"The webhook was not sent: {error.message} SLUICE_WEBHOOK_ALLOW_PRIVATE lets webhooks "
            "reach all of this machine and its network."
        ) from error
    except outbound.Unreachable as error:
        raise Retryable(f"The webhook failed: {error.message}") from error
    except InvalidInput as error:
        raise Permanent(f"The webhook's url is not valid: {error.message}") from error
    if status == 410:
        raise Permanent(f"The webhook at {target['url']} is gone (410).")
    if not 200 <= status < 300:
        raise Retryable(f"The webhook at {target['url']} answered {status}.")
    return Done()


async def post(url: str, body: bytes, headers: dict[str, str], settings: Settings) -> int:
    """The status of the answer. Its body is nobody's business, and is not read."""
    target = outbound.parsed(url)
    async with outbound.Clients() as clients:
        answer = await outbound.send(
            clients.of(target),
            "POST",
            target,
            headers=headers,
            content=body,
            guard=settings.guard(allow_private=settings.webhook_allow_private),
        )
        await answer.aclose()
    return answer.status_code


def sign(secret: str, message_id: str, timestamp: str, body: str) -> str:
    """The `webhook-signature` header. A secret `whsec_...` is base64, others are taken raw."""
    is_encoded = secret.startswith("whsec_")
    try:
        key = base64.b64decode(secret.removeprefix("whsec_")) if is_encoded else secret.encode()
    except ValueError as error:
        raise Permanent(f"The webhook's secret is not base64 after whsec_: {error}.") from error
    digest = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


WEBHOOK = Handler(run=deliver)
