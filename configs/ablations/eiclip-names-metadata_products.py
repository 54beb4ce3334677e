"""Metadata as the text tower reads its names, without keywords, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-names-metadata_products.py
Parent  eiclip-metadata_products.py; differs in model.learner: the general-domain sense alone
"""

_base_ = 'eiclip-metadata_products.py'
model = dict(learner=dict(num_learned=0))
compare_with = 'configs/baselines/clip-meta_products.py'
