"""From the runs of the benchmark to medians, shares of the machine's limits and ratios; and the tables it prints."""

from __future__ import annotations

import statistics
from typing import Any

from .shapes import BITS, LENGTHS, SHAPES, USERS_TABLES, decode_name

Report = dict[str, Any]
Rounds = dict[int, float]
"""One number in each round of the benchmark."""
Measured = dict[str, dict[str, Rounds]]
"""By contender ("ceiling": the machine's limits) and case."""


def summary(values: list[float]) -> dict[str, float]:
    quartile = statistics.quantiles(values, n=4)[0] if len(values) > 1 else values[0]
    return {"median": statistics.median(values), "lower_quartile": quartile, "runs": len(values)}


def reports(runs: list[dict[str, Any]]) -> list[Report]:
    """One for each shape, type and mode that was measured, in the order of their first run."""
    keys = dict.fromkeys((run["shape"], run["type"], run["mode"]) for run in runs)
    return [report(*key, [r for r in runs if (r["shape"], r["type"], r["mode"]) == key]) for key in keys]


def report(shape: str, kind: str, mode: str, runs: list[dict[str, Any]]) -> Report:
    measured = by_round(runs)
    summaries = {who: {case: summary([*found.values()]) for case, found in measured[who].items()} for who in measured}
    ceiling = summaries.pop("ceiling", {})
    found: Report = {
        "shape": shape, "type": kind, "mode": mode, "layers_held": SHAPES[shape].stack, "ceiling": ceiling,
        "notes": {run["who"]: run["note"] for run in runs if "note" in run}, "rates": summaries,
        "others_cpu": max((run["others"] for run in runs), default=0.0),
    }  # fmt: skip
    if mode == "lengths":
        found["lengths"] = lengths(shape, summaries.get("ours", {}))
    elif summaries.get("ours") and ceiling:
        found["cases"] = {case: case_report(shape, kind, case, measured) for case in summaries["ours"]}
        found["derived"] = derived(shape, measured)
    return found


def by_round(runs: list[dict[str, Any]]) -> Measured:
    measured: Measured = {}
    for run in runs:
        limits = {key: value for key, value in run.items() if key in ("read_gb_s", "int8_tops", "f32_tflops")}
        for case, value in run.get("rates", limits).items():
            measured.setdefault(run["who"], {}).setdefault(case, {})[run["round"]] = value
    return measured


def ratio(of: Rounds, to: Rounds) -> float:
    """Median of the rounds' own ratios: the machine's bandwidth differs by up to 2x from one round to another. From
    the medians where no round has both."""
    both = [of[number] / to[number] for number in of if number in to]
    return statistics.median(both) if both else statistics.median(of.values()) / statistics.median(to.values())


def case_report(shape: str, kind: str, case: str, measured: Measured) -> dict[str, float]:
    ours = measured["ours"][case]
    found = share_of_ceiling(shape, kind, case, ours, measured["ceiling"])
    for name, theirs in measured.items():
        if name not in ("ours", "ceiling") and case in theirs:
            found[f"ratio_to_{name}"] = ratio(ours, theirs[case])
    return found


def share_of_ceiling(shape: str, kind: str, case: str, rate: Rounds, ceiling: dict[str, Rounds]) -> dict[str, float]:
    """Of read bandwidth (weights once a step, KV once a sequence) and of the 8-bit rate."""
    s = SHAPES[shape]
    share = {}
    if min(ceiling["int8_tops"].values()):
        per_token = s.weights - (s.head_weights if case.startswith("prefill") else 0)
        share["int8"] = 2 * per_token * 1e-12 * ratio(rate, ceiling["int8_tops"])
    if case.startswith("decode"):
        batch, context = (int(word[1:]) for word in case.split()[1:])
        step = s.weights * BITS[kind] / 8 + batch * s.kv_bytes(context)
        share["bandwidth"] = step / batch * 1e-9 * ratio(rate, ceiling["read_gb_s"])
    return share


def derived(shape: str, measured: Measured) -> dict[str, float]:
    """Medians over the rounds of what one process measured: batches 2 and 3 against the line through 1 and 4; what
    4096 tokens of context leave; how attention reads KV."""
    ours, ceiling = measured["ours"], measured["ceiling"]
    found: dict[str, list[float]] = {}
    for number in ours[decode_name((1, 32))]:
        limits = {name: values[number] for name, values in ceiling.items() if number in values}
        for key, value in derived_once(shape, {case: of[number] for case, of in ours.items()}, limits).items():
            found.setdefault(key, []).append(value)
    return {key: statistics.median(values) for key, values in found.items()}


def derived_once(shape: str, ours: dict[str, float], ceiling: dict[str, float]) -> dict[str, float]:
    one, four = ours[decode_name((1, 32))], ours[decode_name((4, 32))]
    found = {f"b{b}_to_line": ours[decode_name((b, 32))] / (one + (four - one) * (b - 1) / 3) for b in (2, 3)}
    found["kept_at_4096"] = ours[decode_name((1, 4096))] / one
    for batch in (1, 8):
        more = batch / ours[decode_name((batch, 4096))] - batch / ours[decode_name((batch, 32))]
        found.update(attention_share(shape, batch, more, ceiling))
    return found


def attention_share(shape: str, batch: int, seconds: float, ceiling: dict[str, float]) -> dict[str, float]:
    """Of bandwidth and of the f32 multiply-add rate, over what 4064 more tokens of context cost."""
    s = SHAPES[shape]
    if seconds <= 0 or not ceiling:
        return {}
    reads = batch * s.kv_bytes(4096 - 32) / seconds * 1e-9 / ceiling["read_gb_s"]
    found = {f"attention_b{batch}_bandwidth": reads}
    if ceiling["f32_tflops"]:
        found[f"attention_b{batch}_f32"] = (
            batch * s.attention_flops(4096 - 32) / seconds * 1e-12 / ceiling["f32_tflops"]
        )
    return found


def lengths(shape: str, ours: dict[str, Any]) -> list[dict[str, float]]:
    """Ours beside the user's table, each relative to its rate at the shortest length."""
    if not ours:
        return []
    rates = [ours[decode_name((1, n))]["median"] for n in LENGTHS]
    theirs = USERS_TABLES[shape]
    return [
        {"tokens": n, "rate": r, "ours": r / rates[0], "users": t / theirs[0]}
        for n, r, t in zip(LENGTHS, rates, theirs)
    ]


def print_tables(found: list[Report]) -> None:
    for one in found:
        if one.get("lengths"):
            print_lengths(one)
        elif "cases" in one:
            print_cases(one)


def print_cases(one: Report) -> None:
    top = {name: value["median"] for name, value in one["ceiling"].items()}
    print(
        f"\n{one['shape']} {one['type']}, {one['layers_held']} layers: reads {top['read_gb_s']:.1f} GB/s, "
        f"int8 {top['int8_tops']:.2f} TOPS; others had at most {100 * one['others_cpu']:.0f} % of the CPUs"
    )
    for case, entry in one["cases"].items():
        ours = one["rates"]["ours"][case]
        facts = [f"{100 * entry[key]:.0f} % of {key}" for key in ("bandwidth", "int8") if key in entry]
        facts += [f"{value:.2f} x {key[9:]}" for key, value in entry.items() if key.startswith("ratio_to_")]
        print(f"  {case:18} {ours['median']:8.1f} tok/s ({ours['lower_quartile']:.1f}), {', '.join(facts)}")
    print("  " + ", ".join(f"{key} {value:.2f}" for key, value in one["derived"].items()))


def print_lengths(one: Report) -> None:
    s = SHAPES[one["shape"]]
    print(f"\n{one['shape']} {one['type']}, decode of one sequence, {s.layers} layers scaled from {s.stack}; "
          "relative to the shortest length: ours, the user's table")  # fmt: skip
    for row in one["lengths"]:
        print(f"  {row['tokens']:5} tokens {row['rate']:7.2f} tok/s  {row['ours']:.2f}  {row['users']:.2f}")
