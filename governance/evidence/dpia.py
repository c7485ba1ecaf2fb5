"""A data protection impact assessment (GDPR Art. 35(7)): pre-filled from plan, contract, charter and declared facts.

It follows the parts of the EDPB's template: systematic description, necessity and proportionality, risks, measures,
consultation, outcome. Machines fill in what documents and declared facts say, and name the command that shows a figure
instead of stating one. The judgements are questions. A pre-filled assessment is a `draft`; people complete it by
answering every question and by answering for the outcome.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from cohortium.governance.evidence.card import NOT_LEGAL_ADVICE
from cohortium.governance.evidence.markdown import bullets, plain, table
from cohortium.governance.evidence.ropa import data_of, measures_of, recipients_of, transfers_of
from cohortium.governance.rules import Facts
from cohortium.study.audit_plan import AuditPlan
from cohortium.study.charter import Charter, PersonId
from cohortium.study.contract import Contract
from cohortium.study.document import Agreed, Document, validated
from cohortium.study.errors import DataError, RefusedError
from cohortium.study.plan import Plan
from cohortium.study.validation import first_repeat, suggestion

__all__ = [
    "DPIA_SCHEMA",
    "Dpia",
    "DpiaPart",
    "DpiaQuestion",
    "DpiaRisk",
    "DpiaState",
    "DpiaStatement",
    "Outcome",
    "complete_dpia",
    "dpia",
    "dpia_markdown",
    "load_dpia",
]

DPIA_SCHEMA = "cohortium.dpia/1"
"""The schema name this version reads and writes; any other is refused."""

Outcome = Literal["approve", "conditionally approve", "reject", "refer"]
"""What people decide; `refer` asks the supervisory authority first (Art. 36)."""

DpiaState = Literal["draft", "approve", "conditionally approve", "reject", "refer"]

_Part = Literal["description", "necessity", "risks", "measures", "consultation"]
_Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]

_FORMS = {get_args(PersonId)[1].pattern: "give an id, not a name: small letters, digits, '.', '-' and '_'"}
_TEMPLATE = "EDPB DPIA template v1.0 of 10 March 2026 (A)"
_TITLES: dict[_Part, tuple[str, str]] = {
    "description": ("Systematic description", "GDPR Art. 35(7)(a) (A)"),
    "necessity": ("Necessity and proportionality", "GDPR Art. 35(7)(b) (A)"),
    "risks": ("Risks to rights and freedoms", "GDPR Art. 35(7)(c) (A)"),
    "measures": ("Measures", "GDPR Art. 35(7)(d) (A)"),
    "consultation": ("Advice and consultation", "GDPR Art. 35(2), 35(9), 36 (C, unverified)"),
}


class DpiaStatement(Agreed):
    """What a document or a declared fact says.

    Args:
        text: in words.
        source: which document; the assessment names their digests.
        shown_by: the command that shows the figure, where there is one to show.
    """

    text: str
    source: str
    shown_by: str | None = None


class DpiaPart(Agreed):
    """A part of the assessment: what is known, under its article."""

    part: _Part
    title: str
    article: str
    statements: tuple[DpiaStatement, ...]


class DpiaRisk(Agreed):
    """A risk to people, what is done about it, and the command that shows how well.

    Args:
        name: short; its question is `risk-NAME`.
        text: what could happen to whom.
        measures: what stands against it.
        shown_by: the commands that measure it; empty where nothing here does.
    """

    name: str
    text: str
    measures: tuple[str, ...]
    shown_by: tuple[str, ...] = ()


class DpiaQuestion(Agreed):
    """What a person has to answer.

    Args:
        name: by which it is answered.
        part: where it belongs.
        text: the question.
        answer: None while open.
        source: who answered: a declaration, or the people who completed it; None while open.
    """

    name: str
    part: _Part
    text: str
    answer: _Line | None = None
    source: str | None = None


class Dpia(Document):
    """See the module.

    Args:
        schema_id: `cohortium.dpia/1`; written `schema`.
        state: `draft`, or what people decided.
        activity: the plan's name.
        institution: whose assessment it is.
        plan, contract, charter: digests of what it is about.
        parts: what is known, in the template's order.
        risks: to people.
        questions: answered or open.
        conditions: of a conditional approval.
        by: person ids of who answers for the outcome.
        on: day of the outcome (UTC).
        draft: digest of the draft that was completed.
        template: whose parts it has.
        notice: what to make of it.
    """

    schema_id: Annotated[Literal["cohortium.dpia/1"], Field(alias="schema")] = "cohortium.dpia/1"
    state: DpiaState = "draft"
    activity: str
    institution: str
    plan: str
    contract: str
    charter: str
    parts: tuple[DpiaPart, ...]
    risks: tuple[DpiaRisk, ...]
    questions: tuple[DpiaQuestion, ...]
    conditions: tuple[_Line, ...] = ()
    by: tuple[PersonId, ...] = ()
    on: date | None = None
    draft: str | None = None
    template: str = _TEMPLATE
    notice: str = NOT_LEGAL_ADVICE

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _decided_by_people(self) -> Dpia:
        decided = self.state != "draft"
        if decided != bool(self.by) or decided != (self.on is not None) or decided != (self.draft is not None):
            raise ValueError("exactly an assessment that is no draft has people, a day and the draft's digest")
        if decided and self.open:
            raise ValueError("a decided assessment has open questions")
        if repeated := first_repeat(self.by):
            raise ValueError(f"'{repeated}' is named twice; name everybody once")
        if (self.state == "conditionally approve") != bool(self.conditions):
            raise ValueError("exactly a conditional approval has conditions")
        return self

    @property
    def open(self) -> tuple[DpiaQuestion, ...]:
        """The questions that nobody answered yet."""
        return tuple(one for one in self.questions if one.answer is None)


def dpia(institution: str, plan: Plan, charter: Charter, contract: Contract, declared: Facts) -> Dpia:
    """A draft: everything that documents and declared facts say, and the questions that they leave.

    Args:
        institution: whose assessment it is, as the charter names it.
        plan, charter, contract: what is to be run, with whom, on which data.
        declared: facts that the institution states, by the names of `governance.rules`.

    Raises:
        PlanError: the plan is of another contract.
    """
    plan.check_contract(contract)
    statements: dict[_Part, Iterable[DpiaStatement]] = {
        "description": _description(institution, plan, charter, contract, declared),
        "necessity": _necessity(plan, contract),
        "risks": (),
        "measures": _measures(institution, plan, charter),
        "consultation": (),
    }
    risks = _risks(plan)
    return Dpia(
        activity=plan.name,
        institution=institution,
        plan=plan.digest,
        contract=contract.digest,
        charter=charter.digest,
        parts=tuple(
            DpiaPart(part=part, title=title, article=article, statements=tuple(statements[part]))
            for part, (title, article) in _TITLES.items()
        ),
        risks=risks,
        questions=tuple(_questions(plan, charter, risks, declared)),
    )


def _description(
    institution: str, plan: Plan, charter: Charter, contract: Contract, declared: Facts
) -> Iterator[DpiaStatement]:
    yield DpiaStatement(
        text=f"{plan.study} study '{plan.name}' for {plan.purpose}; people in {', '.join(plan.regions)}", source="plan"
    )
    others = ", ".join(one.name for one in charter.institutions if one.name != institution) or "nobody"
    yield DpiaStatement(text=f"{institution} with {others}, in '{charter.name}'", source="charter")
    yield DpiaStatement(
        text=f"customers with rows from {contract.window.start} to {contract.window.end} (exclusive)",
        source="contract",
    )
    for one in data_of(plan, contract):
        use = "for audits alone" if one.protected else one.block or "made for the run"
        yield DpiaStatement(text=f"{one.name}: {one.kind}; {use}", source="contract")
    for text in recipients_of(plan, declared):
        yield DpiaStatement(text=f"recipient: {text}", source="plan")
    for text in transfers_of(plan, charter, declared):
        yield DpiaStatement(text=f"transfers: {text}", source="charter")
    yield DpiaStatement(text=f"what is released is used until {plan.expires}", source="plan")
    yield DpiaStatement(
        text="technology: every question is a sum over customers; noise is added before anything leaves",
        source="docs/architecture.md",
        shown_by="cohortium log show NODE",
    )


def _necessity(plan: Plan, contract: Contract) -> Iterator[DpiaStatement]:
    yield DpiaStatement(text=f"lawful basis, as declared: {plan.lawful_basis.replace('_', ' ')}", source="plan")
    yield DpiaStatement(
        text=f"no row leaves the institution; what does is noisy, and suppressed below {plan.min_cell} people",
        source="plan",
    )
    protected = ", ".join(one.name for one in contract.protected_features) or "none"
    used = "this plan reads them, to audit" if isinstance(plan, AuditPlan) else "no question of this plan reads them"
    yield DpiaStatement(text=f"protected features: {protected}; {used}", source="contract")
    yield DpiaStatement(
        text="only people whose consent stands, or who did not object, are counted, at every question anew",
        source="docs/consent.md",
        shown_by="cohortium consent snapshot NODE",
    )


def _measures(institution: str, plan: Plan, charter: Charter) -> Iterator[DpiaStatement]:
    shown = {
        "dpv:DifferentialPrivacy": "cohortium ledger show NODE",
        "dpv:TechnicalMeasure": "cohortium ledger show NODE",
        "dpv:LoggingPolicy": "cohortium log verify NODE --charter CHARTER",
        "dpv:OrganisationalMeasure": "cohortium rules check FACTS",
    }
    for measure in measures_of(institution, plan, charter):
        yield DpiaStatement(text=measure.text, source="plan and charter", shown_by=shown.get(measure.term))
    yield DpiaStatement(
        text="the privacy claim is attacked with a worst-case canary",
        source="docs/privacy-audit.md",
        shown_by="cohortium privacy audit",
    )
    yield DpiaStatement(
        text="two people of two functions sign card, audit, this assessment and the decision before an export",
        source="docs/review.md",
        shown_by="cohortium review list NODE --charter CHARTER",
    )


def _risks(plan: Plan) -> tuple[DpiaRisk, ...]:
    ledger, log = "cohortium ledger show NODE", "cohortium log show NODE"
    found = [
        DpiaRisk(
            name="inference",
            text="Somebody concludes from what is released whether a person is a customer, or what their rows say.",
            measures=("differential privacy for every person", "a lifetime budget that refuses", "suppressed cells"),
            shown_by=("cohortium privacy audit", ledger),
        ),
        DpiaRisk(
            name="several-institutions",
            text="A customer of several institutions loses more than the plan's epsilon.",
            measures=("the report states epsilon for 1, 2, 3 and all institutions",),
            shown_by=(ledger,),
        ),
        DpiaRisk(
            name="purpose",
            text="What was learnt for marketing is used to decide on prices, credit or eligibility.",
            measures=("the purpose is part of the plan's digest", "rules of admission and activation", "review"),
            shown_by=("cohortium rules check FACTS", log),
        ),
        DpiaRisk(
            name="discrimination",
            text="Groups are left out, or singled out, through features that stand for protected attributes.",
            measures=("protected features enter no distance", "a fairness audit with intervals", "review"),
            shown_by=("cohortium review show NODE CASE --charter CHARTER",),
        ),
        DpiaRisk(
            name="unwilling",
            text="Somebody is counted, or addressed, who did not agree or who objected.",
            measures=("a consent snapshot at every question", "suppression lists", "exports leave them out"),
            shown_by=("cohortium consent snapshot NODE", "cohortium consent status NODE PERSON"),
        ),
        DpiaRisk(
            name="vulnerable",
            text="People in hardship, old or very young people are addressed in a way that harms them.",
            measures=("rules against targeting vulnerability, on declared facts", "review"),
        ),
        DpiaRisk(
            name="theft",
            text="Files at the institution are stolen: customer tables, scores, audiences and keys are not encrypted.",
            measures=("the institution's own protection of the machine",),
        ),
    ]
    if plan.trust == "unsafe-none":
        no_noise = DpiaRisk(name="no-noise", text="There is no noise: exact sums are shown.", measures=())
        found.insert(0, no_noise)
    return tuple(found)


def _questions(plan: Plan, charter: Charter, risks: Sequence[DpiaRisk], declared: Facts) -> Iterator[DpiaQuestion]:
    for name, part, text, facts in _asked(plan, charter):
        yield _question(name, part, text, facts, declared)
    for risk in risks:
        yield _question(
            f"risk-{risk.name}",
            "risks",
            f"{risk.text} How likely and how severe is that here, after the measures?",
            (),
            declared,
        )


def _asked(plan: Plan, charter: Charter) -> Iterator[tuple[str, _Part, str, tuple[str, ...]]]:
    """Questions by name, with the declared facts that answer them where all are stated."""
    yield "contacts", "description", "Who is the controller's contact, and the data protection officer?", ()
    yield (
        "arrangement",
        "description",
        "Under which arrangement do the institutions act, and the coordinator?",
        ("docs.joint_controller_ref", "docs.processor_contract_ref"),
    )
    yield "retention", "description", "How long are customer tables, scores and audiences kept here?", ()
    if plan.study in ("segments", "lookalike"):
        yield "use", "description", "How is what is released used on customers?", ("use.activation", "use.decision")
    yield (
        "necessity",
        "necessity",
        "Why is the purpose not reached with less data, or with this institution's alone?",
        (),
    )
    yield "features", "necessity", "Why is each feature needed?", ()
    balance = ("docs.lia_ref",) if plan.lawful_basis == "legitimate_interests" else ()
    yield "basis", "necessity", f"Why does the basis hold ({plan.lawful_basis.replace('_', ' ')})?", balance
    yield "informed", "necessity", "How were people told of this profiling?", ("notice.profiling_disclosed",)
    yield "rights", "necessity", "How are access, objection and erasure answered for this?", ()
    if len({one.region for one in charter.institutions}) > 1:
        transfers = ("transfer.tool", "docs.tia_ref")
        yield "transfers", "necessity", "What do transfers to other regions rest on?", transfers
    special = ("features.special_category", "features.special_inferred", "features.vulnerability_targeting")
    yield "special", "risks", "Are there special categories, or features that reveal them or vulnerability?", special
    effect = ("use.solely_automated", "use.significant_effect", "use.human_review")
    yield "automated", "risks", "Is anything of legal or similar effect decided, and does a person decide?", effect
    yield "protection", "measures", "How are machines, files and keys protected here?", ()
    yield "officer", "consultation", "What did the data protection officer advise?", ()
    yield "people", "consultation", "What do people or their representatives say, or why were they not asked?", ()
    yield (
        "residual",
        "consultation",
        "Which risk remains? High risk goes to the authority first.",
        ("docs.dpia_residual_risk",),
    )


def _question(name: str, part: _Part, text: str, facts: tuple[str, ...], declared: Facts) -> DpiaQuestion:
    known = [fact for fact in facts if declared.facts.get(fact) is not None]
    if not facts or len(known) < len(facts):
        return DpiaQuestion(name=name, part=part, text=text)
    stated = "; ".join(f"{fact} is {json.dumps(declared.facts[fact])}" for fact in facts)
    source = "; ".join(dict.fromkeys(declared.provenance[fact] for fact in facts))
    return DpiaQuestion(name=name, part=part, text=text, answer=stated, source=source)


def complete_dpia(
    draft: Dpia,
    answers: Mapping[str, str],
    outcome: Outcome,
    *,
    by: Sequence[str],
    on: date,
    conditions: Sequence[str] = (),
) -> Dpia:
    """The assessment as people decided it.

    Args:
        draft: pre-filled.
        answers: by question; they also replace what declared facts answer.
        outcome: what is decided.
        by: person ids of who answers for it.
        on: the day (UTC).
        conditions: of a conditional approval.

    Raises:
        RefusedError: open questions are left; nobody answers for it; conditions are missing or needless; an approval
            although the risk that remains is declared high.
        DataError: no draft, an answer to no question, or one of no words.
    """
    place = f"assessment of '{draft.activity}'"
    if draft.state != "draft":
        raise DataError("is decided already", place=place, fix="begin from a new draft")
    answered = _answered(draft, answers, ", ".join(by), place)
    if still := [one.name for one in answered if one.answer is None]:
        raise RefusedError(
            f"{len(still)} open questions: {', '.join(still)}", place=place, fix="answer every one of them"
        )
    if not by:
        raise RefusedError("nobody answers for the outcome", place=place, fix="name the people who decided")
    if (outcome == "conditionally approve") != bool(conditions):
        raise RefusedError(
            "exactly a conditional approval has conditions", place=place, fix="give conditions, or leave them out"
        )
    if outcome in ("approve", "conditionally approve") and _remains_high(answered):
        raise RefusedError(
            "the risk that remains is declared high", place=place, fix="refer it to the authority, or reduce the risk"
        )
    decided = {
        **draft.to_json(),
        "state": outcome,
        "questions": [one.model_dump() for one in answered],
        "conditions": list(conditions),
        "by": list(by),
        "on": on,
        "draft": draft.digest,
    }
    return validated(Dpia, decided, place, _FORMS, DataError)


def _answered(draft: Dpia, answers: Mapping[str, str], who: str, place: str) -> list[DpiaQuestion]:
    known = [one.name for one in draft.questions]
    for name, text in answers.items():
        if name not in known:
            raise DataError(f"there is no question '{name}'", place=place, fix=suggestion(name, known))
        if not text.strip():
            raise DataError(f"the answer to '{name}' has no words", place=place, fix="answer it, or leave it out")
    return [
        one.model_copy(update={"answer": answers[one.name].strip(), "source": who}) if one.name in answers else one
        for one in draft.questions
    ]


def _remains_high(questions: Iterable[DpiaQuestion]) -> bool:
    """Whether the declared answer about the risk that remains says high; what people write is theirs to judge."""
    return any(one.name == "residual" and one.answer == 'docs.dpia_residual_risk is "high"' for one in questions)


def load_dpia(path: Path) -> Dpia:
    """Read an assessment; `DataError` for one that is unreadable, of another schema, or does not hold together."""
    try:
        found = Dpia.model_validate(json.loads(path.read_bytes()))
        found.to_bytes()
    except OSError as error:
        raise DataError("cannot be read", place=str(path), fix="check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError("is not an impact assessment of this version", place=str(path), fix="make it again") from error
    return found


def dpia_markdown(found: Dpia) -> str:
    """The assessment as Markdown; what people have still to answer is marked."""
    lines = [f"# Impact assessment: {plain(found.activity)}", "", f"**{found.state}** at {plain(found.institution)}"]
    if found.by:
        lines[-1] += f", by {', '.join(found.by)} on {found.on}"
    lines += ["", f"Template: {found.template}. Plan {found.plan}. Contract {found.contract}."]
    for part in found.parts:
        lines += ["", f"## {part.title}", "", f"*{part.article}*"]
        if part.statements:
            lines += ["", *(_statement(one) for one in part.statements)]
        if part.part == "risks":
            rows = [(one.name, one.text, "; ".join(one.measures), "; ".join(one.shown_by)) for one in found.risks]
            lines += ["", *table(("risk", "what could happen", "measures", "shown by"), rows)]
        lines += ["", *(_answer(one) for one in found.questions if one.part == part.part)]
    lines += [
        "",
        "## Outcome",
        "",
        found.state if found.state != "draft" else f"draft: {len(found.open)} open questions",
    ]
    if found.conditions:
        lines += ["", *bullets(found.conditions)]
    return "\n".join([*lines, "", f"*{plain(found.notice)}*", ""])


def _statement(one: DpiaStatement) -> str:
    shown = f" Shown by `{one.shown_by}`." if one.shown_by else ""
    return f"- {plain(one.text)} ({plain(one.source)}).{shown}"


def _answer(one: DpiaQuestion) -> str:
    if one.answer is None:
        return f"- **{one.name}** TO BE ANSWERED: {plain(one.text)}"
    return f"- **{one.name}** {plain(one.text)} {plain(one.answer)} ({plain(one.source or '')})"
