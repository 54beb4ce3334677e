"""CLIP as pretrained, Fashion Product Images: row 1. Nothing is trained.

Run     python tools/test.py configs/baselines/clip-zeroshot_products.py none
Parent  clip_products.py; differs in nothing: row 1 is row 2 before its first step
"""

_base_ = 'clip_products.py'
