"""Trajectory-Refined Distillation (arXiv 2606.08432). Where is TRD? Read in this order:

params.yaml    trd: {trajectory: y_r, divergence: forward_kl}; a method is a line there
rollout.py     y_o, the student's attempts:   y_o = rollout(run, task, problems)
refine.py      y_r, the teacher's rewrites:   y_r = refine(run, task, problems, y_o)
prompts.py     teacher_prompts: what the teacher sees when it rewrites, and when it scores
distill.py     Distiller.token_losses, the loss along y_r:   distill([run], task, sets, tables)
divergence.py  forward_kl over the full vocabulary, its gradient in the forward pass
evaluate.py    what was trained, on the benchmarks:   evaluate([run], task, sets, [adapters])
"""

import gc

# Importing torch and transformers makes a million objects and no garbage to speak of: looking for
# it after each 700th takes a fifth of the imports' time.
gc.set_threshold(50_000)
