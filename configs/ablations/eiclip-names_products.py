"""Entities as the text tower reads their names, no tables of their own, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-names_products.py
Parent  eiclip_products.py; differs in model.learner: the general-domain sense alone
"""

_base_ = '../eiclip_products.py'
model = dict(learner=dict(num_learned=0))
