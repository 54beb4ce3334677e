"""Entities as the text tower reads their names, no tables of their own, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-names_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.learner: the general-domain sense alone
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(learner=dict(num_learned=0))
