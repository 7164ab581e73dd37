"""Trajectory-Refined Distillation (arXiv 2606.08432): rollout, refinement, distillation, measured.

Read the modules in this order; imports point at earlier ones only:
config, notebooks, papermill_engine, prompts, data, parallel, models, generate, engines, grading,
jail, sandbox, oracles, hub, coding, tiny, tinycode, stories, packaged, inputs, rollout, refine,
divergence, distill, evaluate, diagnose, audit, sweep, tables, landscape, report, costs, workload,
plan, doctor, explore, widget.
"""
