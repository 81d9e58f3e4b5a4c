"""Text for a terminal about a split: a table of the clients and the heterogeneity card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedloom.report.run_results import Json
from fedloom.report.tables import MISSING, Table, counted, percent

MAX_CLIENTS = 40  # clients that get a row
TOP_LABELS = 2  # labels that a row names
SEES = {"IT": "images and texts", "I": "images only", "T": "texts only", "": "nothing"}
KINDS = {"both": "Both", "image_only": "Image only", "text_only": "Text only", "none": "Neither"}


def split_text(value: Json, width: int = 80) -> str:
    """Describe a split in plain text.

    Args:
        value: What `fedloom split --json` prints.
        width: Characters in a line.
    """
    card, scenario = value["card"], value["scenario"]
    head = [
        f"{value['data']}, {scenario['mode']} mode",
        _scenario(scenario),
        f"{counted(card['examples'], 'example')} among {counted(card['clients'], 'client')}; "
        f"plan {value['digest'][:12]}",
    ]
    if (validation := value.get("validation")) is not None:
        part = (
            f"{counted(validation['examples'], 'example')} for validation, plan {validation['digest'][:12]}"
        )
        without = f"; {counted(validation['without'], 'client')} without any" if validation["without"] else ""
        head.append(f"{part}{without}")
    return "\n".join([*head, "", clients_table(value).text(width), card_table(card).text(width)])


def _scenario(scenario: Json) -> str:
    """Describe a scenario by its pattern and partition with the settings that they use."""
    clients, images = scenario["clients"], scenario["image_clients"]
    images = clients // 2 if images is None else images
    degree = {
        "missing": f" (rate {scenario['rate']:g})",
        "cross": f" ({images} image to {clients - images} text clients)",
        "hybrid": f" (p = {scenario['p']:g})",
    }.get(scenario["pattern"], "")
    if scenario["partition"] != "dirichlet":
        return f"{scenario['pattern']}{degree}, {scenario['partition'].replace('_', ' ')}"
    first = scenario["mode"] == "published" and scenario["repair"] == "first"
    return (
        f"{scenario['pattern']}{degree}, dirichlet (α = {scenario['alpha']:g}"
        f"{', first label repaired' if first else ''})"
    )


def clients_table(value: Json) -> Table:
    """Return the table of the first `MAX_CLIENTS` clients: modalities, labels and numbers of examples."""
    clients = value["clients"]
    kinds = [kind for kind in KINDS if any(client[kind] for client in clients)]
    rows = tuple(
        (
            str(client["id"]),
            client["modalities"] or MISSING,
            _most(client["labels"]),
            f"{client['size']:,}",
            *(f"{client[kind]:,}" for kind in kinds),
            MISSING if client["words"] is None else f"{client['words']:.1f}",
        )
        for client in clients[:MAX_CLIENTS]
    )
    left = len(clients) - MAX_CLIENTS
    more = f" And {left:,} more clients; --json lists all." if left > 0 else ""
    note = (
        f"I: the client sees images; T: the client sees texts; words: mean length of the visible texts.{more}"
    )
    heads = ("Client", "Sees", "Most frequent labels", "Examples", *(KINDS[kind] for kind in kinds), "Words")
    return Table(heads, rows, note, left=3)


def _most(labels: Mapping[str, int]) -> str:
    total = sum(labels.values())
    ranked = sorted(labels.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count / total:.0%}" for name, count in ranked[:TOP_LABELS])


def card_table(card: Json) -> Table:
    """Return the table of the heterogeneity card, see `fedloom.scenarios.heterogeneity_card`."""
    labels, modalities, sizes, words = (card[key] for key in ("labels", "modalities", "sizes", "words"))
    rows = [
        ("Modalities", _clients_by_modality(modalities["clients"])),
        ("Examples", _examples_by_kind(modalities["examples"], card["examples"])),
        (
            "Sizes",
            f"{sizes['smallest']:,} to {sizes['largest']:,} examples, median {sizes['median']:,.0f}; the "
            f"largest client holds {percent(sizes['largest_share'])}% of all; equivalent to "
            f"{sizes['effective_clients']:.1f} clients of equal size",
        ),
    ]
    if labels is not None:
        far = (
            f"total variation {labels['total_variation']:.2f}, Jensen-Shannon distance "
            f"{labels['jensen_shannon']:.2f} from the pool (0 is identical, 1 is nothing in common; means over clients); "
            f"{labels['effective_per_client']:.1f} effective labels in a client, {labels['effective']:.1f} in "
            "the pool"
        )
        rows.insert(0, (f"{labels['count']:,} labels", far))
    if words is not None:
        prefix = f"{words['mean']:.1f} in a visible text on average; clients' means {words['least']:.1f} to "
        rows.append(("Words", f"{prefix}{words['most']:.1f}"))
    if (duplicates := card.get("duplicates")) is not None:
        rows.append(("Duplicates", _duplicates(duplicates, card["examples"])))
    return Table(("Heterogeneity", ""), tuple(rows), left=2)


def _duplicates(counts: Mapping[str, int], total: int) -> str:
    """State how many examples have a duplicate at another client."""
    has = "has" if counts["content"] == 1 else "have"
    return (
        f"{counts['content']:,} of {counted(total, 'training example')} {has} the same image at another client (without an image: "
        f"the same text); {counts['near']:,} with near-duplicates: variants of one thing, records of one conversation"
    )


def _clients_by_modality(counts: Mapping[str, int]) -> str:
    return "; ".join(
        f"{counted(count, 'client')}: {SEES.get(letters, letters)}"
        for letters, count in counts.items()
        if count
    )


def _examples_by_kind(counts: Mapping[str, int], total: int) -> str:
    shares = (
        f"{KINDS.get(kind, kind).lower()} {count / max(total, 1):.0%}"
        for kind, count in counts.items()
        if count
    )
    return ", ".join(shares)


def cohorts_table(rounds: list[dict[str, Any]]) -> Table:
    """Return the table of the clients of each round."""
    rows = tuple((str(row["round"]), " ".join(map(str, row["clients"]))) for row in rounds)
    return Table(("Round", "Clients"), rows, left=2)
