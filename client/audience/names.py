"""Names of audiences. A name travels to advertising systems and is read there: it must not say what people are.

Advertisers' rules forbid names that suggest somebody's financial status or a sensitive trait. Such a name is refused,
unless the operator gives a reason, which is kept with the audience.
"""

from __future__ import annotations

import re
import unicodedata

from cohortium.study.errors import RefusedError

__all__ = ["SENSITIVE_WORDS", "check_name", "sensitive_topic"]

LONGEST_NAME = 80
"""Characters."""


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split(", "))


SENSITIVE_WORDS: dict[str, tuple[str, ...]] = {
    "financial status": _listed(
        "credit score, credit rating, creditworthy, fico, schufa, debt, debtor, in arrears, overdrawn, "
        "overdraft, bankrupt, bankruptcy, insolvent, default risk, payday, subprime, low income, high income, "
        "income, salary, net worth, wealth, wealthy, affluent, rich, poor, poverty, broke, unemployed, "
        "jobless, benefit claimant, welfare, hnwi, high net worth, pension pot, einkommen, gehalt, schulden, "
        "reich, arbeitslos, revenu, dette, riche, pauvre, ingresos, deuda, rico, pobre, reddito, debito, "
        "ricco, povero, indebted*, overindebted*, cash strapped, hard up, low earner, schuldner*, verschuld*, "
        "uberschuld*, ueberschuld*, zahlungsunfahig*, zahlungsunfaehig*"
    ),
    "health": _listed(
        "health, healthy, ill, illness, sick, disease, disabled, disability, diabetes, diabetic, cancer, hiv, "
        "aids, pregnant, pregnancy, depression, depressed, addict, addiction, obese, mental, patient, "
        "medication, alcoholic, gesundheit, krank, schwanger, maladie, enceinte, salud, enfermo, embarazada, "
        "salute, malato, incinta, overweight, underweight, obesity, ubergewicht*, uebergewicht*"
    ),
    "religion or belief": _listed(
        "religion, religious, christian, catholic, protestant, muslim, islam, jew, jewish, hindu, buddhist, "
        "sikh, atheist, church, mosque, synagogue, halal, kosher, ramadan"
    ),
    "origin": _listed(
        "ethnic, ethnicity, race, racial, black people, white people, asian, african, hispanic, latino, "
        "latina, arab, gypsy, immigrant, migrant, refugee, asylum, foreigner, nationality, "
        "migrationshintergrund, auslaender"
    ),
    "politics or union": _listed(
        "political, politics, voter, left wing, right wing, socialist, communist, republican, democrat, trade "
        "union, union member, gewerkschaft, activist"
    ),
    "sex life or orientation": _listed(
        "gay, lesbian, homosexual, bisexual, transgender, trans, queer, lgbt, lgbtq, sexual, sexuality, "
        "sexual orientation"
    ),
    "vulnerability or crime": _listed(
        "vulnerable, widow, widower, divorced, divorce, gambler, gambling, criminal, convict, convicted, "
        "prison, victim, orphan, minor, underage, children under, single mother, single father, single mum, "
        "single mom, single dad, single parent, lone parent, alleinerziehend*"
    ),
}
"""Words and phrases by what they suggest. Matching is by whole words, whatever their case, accents and plural; one that
ends in `*` also stands for longer words."""


def check_name(name: str, reason: str | None) -> None:
    """Refuse a name that cannot be shown or that suggests a sensitive trait.

    Args:
        name: 1 to 80 visible characters, no blank at either end.
        reason: why a flagged name is right all the same; kept with the audience. None or blank gives none.

    Raises:
        RefusedError: malformed, or flagged without a reason.
    """
    if not 0 < len(name) <= LONGEST_NAME or name != name.strip() or not name.isprintable():
        raise RefusedError("malformed name", place="audience", fix=f"use 1 to {LONGEST_NAME} visible characters")
    topic = sensitive_topic(name)
    if topic is not None and not (reason or "").strip():
        raise RefusedError(
            f"the name suggests {topic}",
            place="audience",
            fix="name what the audience is for, such as 'spring campaign A', or give a reason, which is kept with it",
        )


def sensitive_topic(name: str) -> str | None:
    """What a name suggests, a key of `SENSITIVE_WORDS`, or None."""
    words = _words(name)
    whole = "".join(words)
    for topic, phrases in SENSITIVE_WORDS.items():
        for phrase in phrases:
            parts = phrase.split()
            if _contains(words, parts) or (len(parts) > 1 and "".join(parts) in whole):
                return topic
    return None


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = "".join(c for c in unicodedata.normalize("NFKD", apart) if not unicodedata.combining(c)).casefold()
    return re.findall(r"[^\W\d_]+", plain)


def _contains(words: list[str], parts: list[str]) -> bool:
    starts = range(len(words) - len(parts) + 1)
    return any(all(_same(words[start + i], part) for i, part in enumerate(parts)) for start in starts)


def _same(word: str, listed: str) -> bool:
    if listed.endswith("*"):
        return word.startswith(listed[:-1])
    return word in (listed, listed + "s", listed + "es", listed.removesuffix("y") + "ies")
