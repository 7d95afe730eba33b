"""`sluice schedules`: jobs that are submitted regularly."""

import json
from typing import Any

import click

from cli.options import ListByDefault, confirm, with_client
from cli.terminal.output import print_fields, print_json, print_table, print_text, say
from cli.values import key_values, read_json_object
from shared.vocabulary import Lane
from sluice import Client, Schedule

SHOWN_CHARS = 400


@click.group(cls=ListByDefault)
def schedules() -> None:
    """Make, show, pause and delete schedules (alone: list)."""


@schedules.command("list")
@with_client
def list_schedules(client: Client, *, as_json: bool) -> int:
    """All schedules, and when each is due."""
    items = list(client.schedules())
    if as_json:
        print_json({"items": items})
        return 0
    print_table(
        ("name", "kind", "cron", "timezone", "next", "last"),
        [
            (schedule.name, schedule.kind, schedule.cron, schedule.timezone,
             "paused" if schedule.paused else schedule.next_at, schedule.last_at)
            for schedule in items
        ],
        flexible="cron",
    )  # fmt: skip
    if not items:
        say("No schedules. `sluice schedules put NAME CRON KIND INPUT` makes one.")
    return 0


@schedules.command()
@click.argument("name")
@click.argument("cron")
@click.argument("kind")
@click.argument("source", metavar="INPUT")
@click.option("--timezone", default="UTC", show_default=True, metavar="NAME",
              help="Of the IANA database, such as Asia/Seoul.")  # fmt: skip
@click.option("--lane", type=click.Choice([lane.value for lane in Lane]))
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", callback=key_values,
    help="Noted with every job; may be repeated.",
)  # fmt: skip
@with_client
def put(
    client: Client,
    *,
    name: str,
    cron: str,
    kind: str,
    source: str,
    timezone: str,
    lane: str | None,
    metadata: dict[str, Any],
    as_json: bool,
) -> int:
    """Make or replace a schedule of jobs of KIND. INPUT is a JSON file, JSON itself, or -.

    CRON has five fields: minute, hour, day of the month, month, day of the week; or it is @hourly,
    @daily, @weekly, @monthly or @yearly. While a job is open, no other one of its schedule begins.

    \b
    Examples:
      sluice schedules put docs "0 6 * * MON-FRI" ingest docs.json --timezone Asia/Seoul
      sluice schedules put clean @daily erase '{"collection": "scratch"}'
    """
    job: dict[str, Any] = {"kind": kind, "input": read_json_object(source)}
    if lane is not None:
        job["lane"] = lane
    if metadata:
        job["metadata"] = metadata
    _show(client.put_schedule(name, cron, job, timezone=timezone), as_json=as_json)
    return 0


@schedules.command()
@click.argument("name")
@with_client
def show(client: Client, *, name: str, as_json: bool) -> int:
    """A schedule: when it is due, and its last job."""
    _show(client.schedule(name), as_json=as_json)
    return 0


@schedules.command()
@click.argument("name")
@with_client
def pause(client: Client, *, name: str, as_json: bool) -> int:
    """Submit no jobs until the schedule is resumed."""
    _show(client.pause_schedule(name), as_json=as_json)
    return 0


@schedules.command()
@click.argument("name")
@with_client
def resume(client: Client, *, name: str, as_json: bool) -> int:
    """Submit jobs again from now on. Times that passed during the pause are skipped."""
    _show(client.resume_schedule(name), as_json=as_json)
    return 0


@schedules.command()
@click.argument("name")
@with_client
def run(client: Client, *, name: str, as_json: bool) -> int:
    """Submit its job now, unless the last one is still open."""
    job_id = client.run_schedule(name)
    if as_json:
        print_json({"job_id": job_id})
    else:
        print_text(job_id)
        say(f"Submitted. Follow it with `sluice jobs watch {job_id}`.")
    return 0


@schedules.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_client
def delete(client: Client, *, name: str, yes: bool, as_json: bool) -> int:
    """Delete a schedule. Its jobs stay."""
    if not yes:
        confirm(f"Delete the schedule {name}?")
    client.delete_schedule(name)
    if as_json:
        print_json({"name": name, "deleted": True})
    else:
        say(f"Deleted {name}.")
    return 0


def _compact(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}… (--json has all of it)"


def _show(schedule: Schedule, *, as_json: bool) -> None:
    if as_json:
        print_json(schedule)
        return
    print_fields(
        [
            ("name", schedule.name),
            ("kind", schedule.kind),
            ("input", None if schedule.job is None else _compact(schedule.job.get("input"))),
            ("cron", f"{schedule.cron} ({schedule.timezone})"),
            ("next", "paused" if schedule.paused else schedule.next_at),
            ("last", schedule.last_at),
            ("last job", schedule.last_job_id),
            ("error", schedule.error),
        ]
    )
