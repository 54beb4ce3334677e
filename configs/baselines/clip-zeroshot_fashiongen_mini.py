"""CLIP as pretrained, the mini Fashion-Gen: row 1. Nothing is trained.

Run     python tools/test.py configs/baselines/clip-zeroshot_fashiongen_mini.py none
Parent  clip_fashiongen_mini.py; differs in nothing: row 1 is row 2 before its first step
"""

_base_ = 'clip_fashiongen_mini.py'
