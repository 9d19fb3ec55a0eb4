"""From the runs of the benchmark to medians, shares of the machine's limits and ratios; and the tables it prints."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List

from shapes import BITS, LENGTHS, SHAPES, USERS_TABLES, decode_name

Samples = Dict[str, List[float]]
Report = Dict[str, Any]


def summary(values: List[float]) -> Dict[str, float]:
    quartile = statistics.quantiles(values, n=4)[0] if len(values) > 1 else values[0]
    return {"median": statistics.median(values), "lower_quartile": quartile, "runs": len(values)}


def reports(runs: List[Dict[str, Any]]) -> List[Report]:
    """One for each shape, type and mode that was measured, in the order of their first run."""
    keys = dict.fromkeys((run["shape"], run["type"], run["mode"]) for run in runs)
    return [report(*key, [r for r in runs if (r["shape"], r["type"], r["mode"]) == key]) for key in keys]


def report(shape: str, kind: str, mode: str, runs: List[Dict[str, Any]]) -> Report:
    names = dict.fromkeys(run["who"] for run in runs)
    medians = {name: medians_of([run for run in runs if run["who"] == name]) for name in names}
    ceiling, rates = medians.pop("ceiling", {}), medians
    found: Report = {
        "shape": shape, "type": kind, "mode": mode, "layers_held": SHAPES[shape].stack, "ceiling": ceiling,
        "notes": {run["who"]: run["note"] for run in runs if "note" in run}, "rates": rates,
        "others_cpu": max((run["others"] for run in runs), default=0.0),
    }  # fmt: skip
    if mode == "lengths":
        found["lengths"] = lengths(shape, rates.get("ours", {}))
    elif rates.get("ours") and ceiling:
        found["cases"] = {case: case_report(shape, kind, case, rates, ceiling) for case in rates["ours"]}
        found["derived"] = derived(shape, rates["ours"], ceiling)
    return found


def medians_of(runs: List[Dict[str, Any]]) -> Dict[str, Dict[str, float]]:
    samples: Samples = {}
    for run in runs:
        for name, value in run.get(
            "rates", {k: v for k, v in run.items() if k in ("read_gb_s", "int8_tops", "f32_tflops")}
        ).items():
            samples.setdefault(name, []).append(value)
    return {name: summary(values) for name, values in samples.items()}


def case_report(shape: str, kind: str, case: str, rates: Dict[str, Any], ceiling: Dict[str, Any]) -> Dict[str, float]:
    ours = rates["ours"][case]["median"]
    found = share_of_ceiling(shape, kind, case, ours, ceiling)
    for name, theirs in rates.items():
        if name != "ours" and case in theirs:
            found[f"ratio_to_{name}"] = ours / theirs[case]["median"]
    return found


def share_of_ceiling(shape: str, kind: str, case: str, rate: float, ceiling: Dict[str, Any]) -> Dict[str, float]:
    """Of read bandwidth (weights once a step, KV once a sequence) and of the 8-bit rate."""
    s = SHAPES[shape]
    top, share = ceiling["int8_tops"]["median"], {}
    if top:
        per_token = s.weights - (s.head_weights if case.startswith("prefill") else 0)
        share["int8"] = 2 * per_token * rate * 1e-12 / top
    if case.startswith("decode"):
        batch, context = (int(word[1:]) for word in case.split()[1:])
        step = s.weights * BITS[kind] / 8 + batch * s.kv_bytes(context)
        share["bandwidth"] = rate / batch * step * 1e-9 / ceiling["read_gb_s"]["median"]
    return share


def derived(shape: str, ours: Dict[str, Any], ceiling: Dict[str, Any]) -> Dict[str, float]:
    """Batches 2 and 3 against the line through 1 and 4; what 4096 tokens of context leave; how attention reads KV."""

    def rate(batch: int, context: int) -> float:
        return float(ours[decode_name((batch, context))]["median"])

    one, four = rate(1, 32), rate(4, 32)
    found = {f"b{b}_to_line": rate(b, 32) / (one + (four - one) * (b - 1) / 3) for b in (2, 3)}
    found["kept_at_4096"] = rate(1, 4096) / one
    for batch in (1, 8):
        found.update(attention_share(shape, batch, batch / rate(batch, 4096) - batch / rate(batch, 32), ceiling))
    return found


def attention_share(shape: str, batch: int, seconds: float, ceiling: Dict[str, Any]) -> Dict[str, float]:
    """Of bandwidth and of the f32 multiply-add rate, over what 4064 more tokens of context cost."""
    s = SHAPES[shape]
    if seconds <= 0:
        return {}
    reads = batch * s.kv_bytes(4096 - 32) / seconds * 1e-9 / ceiling["read_gb_s"]["median"]
    found = {f"attention_b{batch}_bandwidth": reads}
    flops = ceiling["f32_tflops"]["median"]
    if flops:
        found[f"attention_b{batch}_f32"] = batch * s.attention_flops(4096 - 32) / seconds * 1e-12 / flops
    return found


def lengths(shape: str, ours: Dict[str, Any]) -> List[Dict[str, float]]:
    """Ours beside the user's table, each relative to its rate at the shortest length."""
    if not ours:
        return []
    rates = [ours[decode_name((1, n))]["median"] for n in LENGTHS]
    theirs = USERS_TABLES[shape]
    return [
        {"tokens": n, "rate": r, "ours": r / rates[0], "users": t / theirs[0]}
        for n, r, t in zip(LENGTHS, rates, theirs)
    ]


def print_tables(found: List[Report]) -> None:
    for one in found:
        if one.get("lengths"):
            print_lengths(one)
        elif "cases" in one:
            print_cases(one)


def print_cases(one: Report) -> None:
    top = {name: value["median"] for name, value in one["ceiling"].items()}
    print(f"\n{one['shape']} {one['type']}, {one['layers_held']} layers: reads {top['read_gb_s']:.1f} GB/s, "
          f"int8 {top['int8_tops']:.2f} TOPS; others had at most {100 * one['others_cpu']:.0f} % of the CPUs")  # fmt: skip
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
