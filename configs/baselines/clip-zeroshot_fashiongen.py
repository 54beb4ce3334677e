"""CLIP as pretrained, Fashion-Gen: row 1. Nothing is trained.

Run     python tools/test.py configs/baselines/clip-zeroshot_fashiongen.py none
Parent  clip_fashiongen.py; differs in nothing: row 1 is row 2 before its first step
"""

_base_ = 'clip_fashiongen.py'
