"""``snnkit report RUN``: what it prints."""

from snnkit.cli.output import print_json, say
from snnkit.reporting import Written


def show(written: Written, *, json: bool) -> None:
    """The verdict, what is missing and where the page is; or the report as JSON."""
    if json:
        content = written.report.to_json()
        del content["schema"]  # print_json writes it
        print_json({"files": [str(written.page), str(written.data)], **content})
        return
    say(written.report.verdict.sentence)
    for missing in written.report.missing:
        say(f"{missing.section}: {missing.why} {missing.command}".rstrip())
    say(f"page: {written.page} ({written.page.stat().st_size / 1024:.0f} KiB)")
    say(f"data: {written.data}")
