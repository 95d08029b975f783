"""Emotion from one language to another: methods and baselines in one frame, on five corpora of real
speech.
"""
