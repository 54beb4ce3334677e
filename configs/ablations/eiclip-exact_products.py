"""The mixture of softmaxes itself, not its expectation inside, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-exact_products.py
Parent  eiclip_products.py; differs in model.learner.expectation
"""

_base_ = '../eiclip_products.py'
model = dict(learner=dict(expectation='exact', max_combinations=8))
