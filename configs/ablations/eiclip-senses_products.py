"""Two learned senses an entity, beside the general one, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-senses_products.py
Parent  eiclip_products.py; differs in model.learner: senses, and a prior that is learned
"""

_base_ = '../eiclip_products.py'
model = dict(learner=dict(num_learned=2, prior='learned'))
