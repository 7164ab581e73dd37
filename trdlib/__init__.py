"""Trajectory-Refined Distillation (arXiv 2606.08432): rollout, refinement, distillation, measured.

Read the modules in this order; imports point at earlier ones only:
config, notebooks, papermill_engine, warm, prompts, data, parallel, models, generate, engines,
grading, jail, sandbox, oracles, hub, coding, tiny, tinycode, stories, packaged, inputs, rollout,
refine, divergence, distill, evaluate, diagnose, audit, sweep, tables, landscape, report, costs,
workload, plan, doctor, explore, widget.
"""

import gc

# Importing torch and transformers makes a million objects and no garbage to speak of: looking for
# it after each 700th takes a fifth of the imports' time.
gc.set_threshold(50_000)
