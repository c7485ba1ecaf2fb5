"""Provenance: what an independent reader of PROV-JSON finds in it; nobody but parties and reviewers is named."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cohortium.governance.evidence import prov_json
from cohortium.governance.review import Case, Signed, Terms, open_case, sign_statement
from cohortium.study.charter import prove_possession
from cohortium.study.errors import DataError

from .released import audit, bundle, campaign, charter, contract, lookalike_plan, segment_plan

RUN, DECISION, COMMITMENT = "0" * 32, "sha256:" + "d" * 64, "c" * 64
QUESTIONS = [one.question for one in bundle().releases]

ENDS = {  # of the submission: which attributes a relation has, and what they name
    "used": (("prov:activity", "activity"), ("prov:entity", "entity")),
    "wasGeneratedBy": (("prov:entity", "entity"), ("prov:activity", "activity")),
    "wasAssociatedWith": (("prov:activity", "activity"), ("prov:agent", "agent")),
    "wasAttributedTo": (("prov:entity", "entity"), ("prov:agent", "agent")),
    "wasDerivedFrom": (("prov:generatedEntity", "entity"), ("prov:usedEntity", "entity")),
}


def entries() -> list[dict[str, Any]]:
    """Of north's log, as nodes write them."""
    plan = segment_plan().digest
    admission = {"event": "admission", "plan": plan, "run": RUN, "decision": DECISION, "admitted": "true"}
    releases = [
        {
            "event": "release",
            "plan": plan,
            "run": RUN,
            "phase": record.phase,
            "step": record.step,
            "attempt": record.attempt,
            "question": record.question,
            "charge": index,
            "mu2": str(record.mu2),
            "tv": str(record.tv),
            "decision": DECISION,
            "consent": COMMITMENT,
        }
        for index, record in enumerate(bundle().releases, 1)
    ]
    export = {
        "event": "activation",
        "plan": lookalike_plan().digest,
        "audience": "aud-7",
        "model": campaign().digest,
        "level": "balanced",
        "decision": "sha256:" + "e" * 64,
        "case": "sha256:" + "f" * 64,
        "statements": ["sha256:" + "b" * 64],
        "admitted": "true",
    }
    refused = {**export, "audience": "aud-8", "decision": "sha256:" + "a" * 64, "admitted": "false"}
    return [admission, *releases, export, refused, {"event": "something of a later version"}]


def case_of() -> tuple[Case, tuple[Signed, ...]]:
    documents: dict[Any, Any] = {part: {"schema": part} for part in ("card", "audit", "dpia", "decision")}
    case = open_case(
        documents,
        {},
        name="spring-1",
        federation="group",
        institution="north",
        kind="audience_export",
        about="spring",
        purpose="Lookalike",
        owner="p-3",
        builders=["p-8"],
        opened_at="2026-11-23T09:00:00Z",
    )
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    priya = prove_possession("group", "p-17", "north", "privacy", key)
    now = datetime(2026, 11, 23, 10, tzinfo=UTC)
    terms = Terms(questions=("why now?",))
    return case, (sign_statement(case, case.digest, priya, key, "return", terms, now),)


def whole() -> dict[str, Any]:
    return prov_json(
        charter(),
        contract(),
        plans=[segment_plan(), lookalike_plan()],
        released=[bundle(), campaign()],
        fairness=[audit(campaign().digest)],
        logs={"north": entries()},
        reviews=[case_of()],
    )


def pairs(found: dict[str, Any], relation: str) -> set[tuple[str, str]]:
    (first, _), (second, _) = ENDS[relation]
    return {(one[first], one[second]) for one in found[relation].values()}


def coh(kind: str, digest: str) -> str:
    return f"coh:{kind}-{digest.removeprefix('sha256:')}"


def test_every_relation_names_nodes_that_stand_in_the_document() -> None:
    found = whole()
    assert set(found) == {"prefix", "entity", "activity", "agent", *ENDS}
    for relation, ends in ENDS.items():
        assert found[relation]
        for one in found[relation].values():
            assert set(one) == {name for name, _ in ends}
            for name, kind in ends:
                assert one[name] in found[kind]
    names = {name for kind in ("entity", "activity", "agent") for name in found[kind]}
    assert all(re.fullmatch(r"coh:[A-Za-z0-9._-]+", name) for name in names)
    assert len(names) == sum(len(found[kind]) for kind in ("entity", "activity", "agent"))


def test_an_independent_reader_reads_it() -> None:
    prov = pytest.importorskip("prov.model", reason="an independent reader is the package prov")
    found = whole()
    document = prov.ProvDocument.deserialize(content=json.dumps(found), format="json")
    kinds = {"entity": prov.ProvEntity, "activity": prov.ProvActivity, "agent": prov.ProvAgent}
    for name, kind in kinds.items():
        read = {str(record.identifier) for record in document.get_records(kind)}
        assert read == set(found[name])
    used = {(str(record.args[0]), str(record.args[1])) for record in document.get_records(prov.ProvUsage)}
    assert used == pairs(found, "used")
    (north,) = document.get_record("coh:agent-1")
    assert {str(kind) for kind in north.get_asserted_types()} == {"prov:Organization"}
    again = prov.ProvDocument.deserialize(content=document.serialize(format="json"), format="json")
    assert again == document


def test_equal_provenance_is_an_equal_document_in_any_order() -> None:
    given = {"plans": [segment_plan(), lookalike_plan()], "released": [bundle(), campaign()]}
    turned = {name: list(reversed(each)) for name, each in given.items()}
    assert json.dumps(prov_json(charter(), contract(), **given)) == json.dumps(  # type: ignore[arg-type]
        prov_json(charter(), contract(), **turned)  # type: ignore[arg-type]
    )


def test_a_release_comes_from_its_run_which_used_plan_decision_and_contributions() -> None:
    found = whole()
    run, model = f"coh:run-{RUN}", coh("released", bundle().digest)
    assert (model, run) in pairs(found, "wasGeneratedBy")
    assert (model, coh("plan", segment_plan().digest)) in pairs(found, "wasDerivedFrom")
    assert (model, "coh:agent-coordinator") in pairs(found, "wasAttributedTo")
    used = pairs(found, "used")
    assert {(run, coh("plan", segment_plan().digest)), (run, coh("decision", DECISION))} <= used
    for question in QUESTIONS:
        contribution = f"{coh('contribution', question)}-1"
        assert (run, contribution) in used
        assert (coh("question", question), coh("consent", COMMITMENT)) in used
        assert (contribution, coh("question", question)) in pairs(found, "wasGeneratedBy")
        assert (contribution, "coh:agent-1") in pairs(found, "wasAttributedTo")
        assert (coh("question", question), "coh:agent-1") in pairs(found, "wasAssociatedWith")


def test_a_campaign_derives_from_its_encoder() -> None:
    model, encoder = coh("released", campaign().digest), coh("released", campaign().document.plan.model)
    assert (model, encoder) in pairs(whole(), "wasDerivedFrom")


def test_an_audit_uses_what_it_audits() -> None:
    found, result = whole(), audit(campaign().digest)
    activity = coh("audit", result.digest)
    assert (activity, coh("released", campaign().digest)) in pairs(found, "used")
    assert (coh("fairness", result.digest), activity) in pairs(found, "wasGeneratedBy")
    assert found["entity"][coh("fairness", result.digest)]["coh:verdict"] == "fail"


def test_an_export_uses_model_decision_and_case() -> None:
    found = whole()
    export, audience = coh("export", "e" * 64), "coh:audience-1-aud-7"
    digests = {coh("released", campaign().digest), coh("decision", "e" * 64), coh("case", "f" * 64)}
    assert {(export, digest) for digest in digests} <= pairs(found, "used")
    assert (audience, export) in pairs(found, "wasGeneratedBy")
    assert (audience, coh("released", campaign().digest)) in pairs(found, "wasDerivedFrom")


def test_a_refused_export_is_a_decision_and_no_audience() -> None:
    found = whole()
    assert found["entity"][coh("decision", "a" * 64)]["coh:admitted"] == "false"
    assert "coh:audience-1-aud-8" not in found["entity"]
    assert coh("export", "a" * 64) not in found["activity"]


def test_a_review_is_attributed_to_a_person_of_the_institution() -> None:
    found = whole()
    case, (signed,) = case_of()
    review, statement, person = coh("review", signed.digest), coh("statement", signed.digest), "coh:person-1-p-17"
    assert (review, coh("case", case.digest)) in pairs(found, "used")
    assert (review, person) in pairs(found, "wasAssociatedWith")
    assert (statement, person) in pairs(found, "wasAttributedTo")
    assert (coh("case", case.digest), coh("dpia", case.subject.dpia)) in pairs(found, "wasDerivedFrom")
    assert found["agent"][person]["coh:function"] == "privacy"
    assert found["activity"][review]["coh:at"] == "2026-11-23T10:00:00+00:00"


def test_no_rules_in_force_is_no_decision() -> None:
    bare = [{**one, "decision": "none"} for one in entries() if one["event"] in ("admission", "release")]
    found = prov_json(charter(), contract(), logs={"north": bare})
    assert not [name for name in found["entity"] if name.startswith("coh:decision-")]


def test_the_log_of_a_stranger_is_refused() -> None:
    with pytest.raises(DataError, match="'east' is no member"):
        prov_json(charter(), contract(), logs={"east": entries()})


@pytest.mark.parametrize("missing", ["run", "plan", "question", "consent"])
def test_an_entry_without_its_fields_is_refused_by_its_event(missing: str) -> None:
    release = {name: value for name, value in entries()[1].items() if name != missing}
    with pytest.raises(DataError, match="log of north: an entry of event 'release' is not of this version"):
        prov_json(charter(), contract(), logs={"north": [release]})
