"""Speeds, each as a ratio of two things measured in turns: `python -m tests.benchmarks [name ...]`. No test."""
