"""Which outdated units are replaced, and when."""

from __future__ import annotations

from dataclasses import replace

from syshaxd.supervisor.replacing import Replacements, Standing

NEW = Standing("gpu", "new", ready=True, settled=True, outdated=True, stale=False)
CPU = replace(NEW, name="cpu")
DOWN = replace(NEW, name="down", ready=False)


def test_those_that_serve_go_one_by_one_the_others_at_once() -> None:
    replacements = Replacements()
    assert replacements.next((NEW, DOWN, replace(DOWN, name="other"), CPU)) == ("down", "other", "gpu")
    restarting = replace(NEW, ready=False, settled=False)
    assert replacements.next((restarting, CPU)) == (), "told once, and the next one waits"
    replacements.forget(["gpu"])
    assert replacements.next((replace(NEW, outdated=False), CPU)) == ("cpu",)


def test_one_that_does_not_come_back_holds_up_the_rest() -> None:
    replacements = Replacements()
    assert replacements.next((NEW, CPU)) == ("gpu",)
    assert replacements.next((replace(NEW, ready=False), CPU)) == ()
    fixed = replace(NEW, digest="fixed", ready=False)
    changed = replace(CPU, digest="fixed")
    assert replacements.next((fixed, changed)) == ("gpu", "cpu"), "a new wish is told at once; it no longer serves"


def test_stale_units_wait_until_all_have_settled() -> None:
    replacements = Replacements()
    adopted = replace(NEW, outdated=False, stale=True)
    starting = replace(CPU, ready=False, settled=False, outdated=False)
    assert replacements.next((adopted, starting)) == ()
    assert replacements.next((adopted, replace(starting, ready=True, settled=True))) == ("gpu",)
