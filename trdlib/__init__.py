"""Trajectory-Refined Distillation (arXiv 2606.08432): rollout, refinement, distillation, measured.

Read the modules in this order; imports point at earlier ones only:
config, prompts, data, parallel, models, generate, grading, hub, tiny, inputs, rollout, refine,
divergence, distill, evaluate, diagnose, audit, tables, landscape, report, costs, workload, plan,
doctor, explore, widget.
"""
