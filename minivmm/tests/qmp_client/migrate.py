"""Two migrations, driven by the public client: SOURCE goes to MIDDLE with `channels`, and on to END with `uri`,
which was started with `--incoming defer`.

Usage: migrate.py SOURCE MIDDLE END MIDDLE_DOOR END_DOOR: three QMP sockets, and the sockets that the destinations listen at.
"""

import asyncio
import contextlib
import sys
import time

from qemu.qmp import EventListener, ExecuteError, QMPClient

TIMEOUT_S = 120
ENDS = ("completed", "failed", "cancelled", "unacknowledged", "undecided")


async def refused(client, command, arguments, words, oob=False):
    """The command is refused with QEMU's class and these words."""
    try:
        answer = await client.execute(command, arguments, oob=oob)
    except ExecuteError as error:
        assert error.error_class == "GenericError", error.error_class
        assert words in str(error), f"{command}: {error}"
        return
    raise AssertionError(f"{command} was answered with {answer}")


async def ask_everything(client):
    """Each query is answered, and each command is in the schema."""
    commands = [one["name"] for one in await client.execute("query-commands")]
    schema = await client.execute("query-qmp-schema")
    assert sorted(commands) == sorted(one["name"] for one in schema if one["meta-type"] == "command")
    answers = {name: await client.execute(name) for name in commands if name.startswith("query-")}
    assert len(answers) > 10, sorted(answers)
    assert [cpu["cpu-index"] for cpu in answers["query-cpus-fast"]] == [0, 1]
    assert answers["query-block"][0]["inserted"]["image"]["virtual-size"] == 4096
    assert answers["query-chardev"][-1] == {"label": "serial0", "filename": "null", "frontend-open": True}
    return answers


async def stop_and_go_on(client):
    with client.listener(("STOP", "RESUME")) as events:
        await client.execute("stop")
        assert (await events.get())["event"] == "STOP"
        status = await client.execute("human-monitor-command", {"command-line": "info status"})
        assert status == "VM status: paused\r\n", status
        await client.execute("cont")
        assert (await events.get())["event"] == "RESUME"


async def measure_dirty_rate(client):
    await client.execute("calc-dirty-rate", {"calc-time": 50, "calc-time-unit": "millisecond"})
    while (answer := await client.execute("query-dirty-rate"))["status"] != "measured":
        await asyncio.sleep(0.01)
    assert answer["dirty-rate"] >= 0 and answer["mode"] == "page-sampling", answer


async def migrate(source, destination, arguments):
    """The guest leaves `source`, and runs at `destination`; how long each answer to query-migrate took, in ms."""
    await source.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
    # A busy host is no reason to give up.
    await source.execute("migrate-set-parameters", {"downtime-limit": 60_000, "max-bandwidth": 0})
    times, seen, passes = [], [], []
    arrival = EventListener("RESUME")
    with source.listener(("MIGRATION", "MIGRATION_PASS")) as events, destination.listen(arrival):
        await source.execute("migrate", arguments)
        while not seen or seen[-1] not in ENDS:
            begun = time.monotonic()
            await source.execute("query-migrate")
            times.append((time.monotonic() - begun) * 1000)
            while not events.empty():
                event = await events.get()
                if event["event"] == "MIGRATION":
                    seen.append(event["data"]["status"])
                else:
                    passes.append(event["data"]["pass"])
        await arrival.get()
    why = await source.execute("query-migrate")
    assert seen[0] == "setup" and seen[-1] == "completed" and "device" in seen, (seen, why)
    assert passes == list(range(1, len(passes) + 1)) and passes, passes
    assert (await source.execute("query-status"))["status"] == "postmigrate"
    assert (await destination.execute("query-status"))["running"]
    shown = await source.execute("human-monitor-command", {"command-line": "info migrate"})
    assert shown.startswith("Migration status: completed\r\n"), shown
    return times


async def quit_all(*clients):
    for client in clients:
        with client.listener("SHUTDOWN") as events:
            await client.execute("quit")
            assert (await events.get())["data"] == {"guest": False, "reason": "host-qmp-quit"}
        # The machine may have closed the connection first, which this client takes for an error.
        with contextlib.suppress(EOFError):
            await client.disconnect()


async def main(sockets, middle_door, end_door):
    source, middle, end = clients = [QMPClient(name) for name in ("source", "middle", "end")]
    for client, socket in zip(clients, sockets):
        await client.connect(socket)
    while not (await source.execute("query-status"))["running"]:
        await asyncio.sleep(0.01)
    answers = await ask_everything(source)
    for client in (middle, end):
        assert (await client.execute("query-status"))["status"] == "inmigrate"
        await refused(client, "migrate", {"uri": "unix:/nowhere"}, "inmigrate")
    await refused(source, "migrate-pause", None, "postcopy", oob=True)
    await refused(source, "migrate-recover", {"uri": "unix:/nowhere"}, "postcopy is paused", oob=True)
    await refused(source, "migrate-continue", {"state": "pre-switchover"}, "not in expected state: none")
    await refused(source, "set-vcpu-dirty-limit", {"dirty-rate": 1}, "dirty-ring-size")
    for one in answers["query-migrate-capabilities"]:
        change = {"capabilities": [one]}
        await source.execute("migrate-set-capabilities", change)
    await refused(source, "migrate-set-capabilities",
                  {"capabilities": [{"capability": "postcopy-preempt", "state": True}]}, "Postcopy preempt requires postcopy-ram")
    await source.execute("migrate-set-parameters", answers["query-migrate-parameters"])
    await source.execute("announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100})
    await stop_and_go_on(source)
    await measure_dirty_rate(source)
    unix = {"transport": "socket", "type": "unix", "path": middle_door}
    first = await migrate(source, middle, {"channels": [{"channel-type": "main", "addr": unix}]})
    await end.execute("migrate-incoming", {"uri": f"unix:{end_door}"})
    await refused(end, "migrate-incoming", {"uri": f"unix:{end_door}"}, "already been started")
    second = await migrate(middle, end, {"uri": f"unix:{end_door}"})
    times = sorted(first + second)
    print(f"query-migrate, with the client's own work: {times[len(times) // 2]:.2f} ms at the median of {len(times)} times,"
          f" {times[-1]:.2f} ms at most")
    with end.listener(("POWERDOWN", "RESET")) as events:
        await end.execute("system_powerdown")
        assert (await events.get())["event"] == "POWERDOWN"
    await quit_all(source, middle, end)


asyncio.run(asyncio.wait_for(main(sys.argv[1:4], *sys.argv[4:6]), TIMEOUT_S))
