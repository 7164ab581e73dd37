"""Trajectory-Refined Distillation (arXiv 2606.08432): rollout, refinement, distillation, measured.

Read the modules in this order; imports point down this list only:
config, prompts, data, tiny, models, generate, grading, rollout, refine, divergence, distill,
evaluate, tables.
"""
