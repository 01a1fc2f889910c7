"""Measure and restore a model's calibration in Python: a notebook's cells, on the demo's model, without a download.

Run it anywhere: python docs/example.py. It writes nothing into the working directory.
"""

# %% A small model of a generated world; alignment (DPO) made it overconfident.
import tempfile

import calibtune as ct
from calibtune.demo import ALIGNED
from calibtune.metrics import accuracy, conf_ece, letter_probs, nll

runs = tempfile.mkdtemp()
options = {"apply_chat_template": True, "batch_size": 128, "limit": 500}

# %% Measure it. The results are lm_eval's.
base = ct.evaluate(model=ALIGNED, tasks=["mc_calib_world"], **options)
numbers = base.results["mc_calib_world"]
print(f"conf-ECE {numbers['conf_ece_10']:.3f}  [{numbers['conf_ece_10_low']:.3f}, {numbers['conf_ece_10_high']:.3f}]")

# %% Every answer is kept, so that any number can be computed again.
(samples,) = ct.load_samples(base.folder)
probs = letter_probs(samples.log_probs)
print(f"accuracy {accuracy(probs, samples.labels):.3f}, conf-ECE with 15 bins", end=" ")
print(f"{conf_ece(probs, samples.labels, bins=15):.3f}, NLL {nll(samples.log_probs, samples.labels):.3f}")

# %% Fit a temperature to arrays: here to half of the questions, measured on the other half.
half = len(samples.labels) // 2
t = ct.fit_temperature(samples.log_probs[:half], samples.labels[:half])
print(f"T = {t.value:.2f}  [{t.interval[0]:.2f}, {t.interval[1]:.2f}]", end=", ")
print(f"NLL of the others {nll(t.apply(samples.log_probs[half:]), samples.labels[half:]):.3f}")

# %% Or to the task's training questions, into a folder that evaluation, lm_eval and `load` take.
recipe = ct.Recipe(method="temperature", apply_chat_template=True, batch_size=128)
artifact = ct.fit(recipe, model=ALIGNED, tasks=["mc_calib_world"], output=f"{runs}/temperature")
scaled = ct.load(f"{runs}/temperature").probs(samples.log_probs)
print(f"conf-ECE {conf_ece(scaled, samples.labels):.3f}")

# %% Evaluate the artifact, and compare both, question by question, on one page.
tuned = ct.evaluate(artifact=artifact, tasks=["mc_calib_world"], batch_size=128, limit=500)
print(ct.report([base, tuned], f"{runs}/report"))
