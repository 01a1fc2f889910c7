"""Files as lm_eval's --log_samples writes them, made up."""

import json

DATE = "2026-01-02T03-04-05.678"


def sample(doc_id, loglikelihoods=(-1.0, -2.0, -3.0), target="0", **change):
    responses = [[[str(value), "False"]] for value in loglikelihoods]
    row = {"doc_id": doc_id, "doc": {"question": f"Q{doc_id}"}, "target": target, "resps": responses, "filter": "none"}
    return {**row, "doc_hash": f"hash{doc_id}", **change}


def write(folder, rows, task="mc_calib_arc", date=DATE):
    path = folder / f"samples_{task}_{date}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_results(folder, date=DATE, **counts):
    counted = {task: {"original": count, "effective": count} for task, count in counts.items()}
    (folder / f"results_{date}.json").write_text(json.dumps({"n-samples": counted}))
