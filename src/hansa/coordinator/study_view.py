"""What people and machines are shown of a study at the coordinator."""

import time
from datetime import datetime
from typing import Any

from hansa.coordinator.office import Office
from hansa.coordinator.progress import Progress, read_progress
from hansa.coordinator.study_desk import ProposedStudy
from hansa.coordinator.study_states import Outcomes, name_of, session_of, state_of


def view_of(office: Office, study: ProposedStudy, now: datetime) -> dict[str, Any]:
    """Give everything about a study, in plain JSON types."""
    outcome = Outcomes(office.journal).get(study)
    body, progress = study.proposal.body, read_progress(office.journal, session_of(study))
    agreement = body.agreement()
    return {
        "name": name_of(study),
        "session": session_of(study),
        "study": body.study_id.hex(),
        "state": state_of(study, outcome, now),
        "author": body.author,
        "purpose": agreement.purpose,
        "base_model": body.base_model.hex(),
        "invited": [member.name for member in body.invited],
        "needed": body.approvals_needed,
        "approved": sorted(study.approvals),
        "denied": sorted(study.denials),
        "roster": [member.name for member in study.start.body.roster] if study.start else [],
        "epsilon": agreement.privacy.epsilon,
        "delta": agreement.privacy.delta,
        "rounds": agreement.training.rounds,
        "protections": agreement.protections(),
        "error": outcome.error,
        "message": outcome.message,
        "created": body.created.isoformat(),
        "expires": body.expires.isoformat(),
        "progress": None if progress is None else progress_view(progress),
    }


def progress_view(progress: Progress) -> dict[str, Any]:
    """Give how far a study is, in plain JSON types."""
    left = progress.seconds_left
    return {
        "round": progress.round,
        "rounds": progress.rounds,
        "stage": progress.stage,
        "waiting": list(progress.waiting),
        "waiting_seconds": round(time.time() - progress.since, 1) if progress.waiting else 0.0,
        "problem": progress.problem,
        "up_bytes": progress.up_bytes,
        "down_bytes": progress.down_bytes,
        "seconds_left": None if left is None else round(left, 1),
    }


def progress_line(view: dict[str, Any]) -> str:
    """Say in a line where a study is."""
    state, progress = view["state"], view["progress"]
    if progress is None or state in ("proposed", "queued", "expired"):
        return f"{view['name']}: {state}, {len(view['approved'])} of {view['needed']} approvals"
    words = [f"{view['name']}: {state}, round {progress['round']}/{progress['rounds']}"]
    if progress["problem"]:
        words.append(f"waits: {progress['problem']}")
    elif progress["stage"]:
        words.append(progress["stage"])
        if progress["waiting"]:
            shown = ", ".join(progress["waiting"][:6]) + (" ..." if len(progress["waiting"]) > 6 else "")
            words.append(f"waiting {progress['waiting_seconds']:.0f} s for {shown}")
    if progress["up_bytes"]:
        words.append(f"{progress['up_bytes'] / 1e6:.1f} MB up, {progress['down_bytes'] / 1e6:.1f} MB down")
    if progress["seconds_left"] is not None and state == "running":
        words.append(f"about {progress['seconds_left']:.0f} s left")
    if view["error"]:
        words.append(f"{view['message']} [{view['error']}]")
    return "; ".join(words)
