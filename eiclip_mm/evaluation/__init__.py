"""Evaluation: embeddings to ranks to the tables of named protocols."""

import mmpretrain.evaluation  # noqa: F401  registers the parent's metrics for configs

from .functional import both_ranks, median_rank, ranks, recall_at, sum_recall
from .metrics import RetrievalMetric
from .protocols import PROTOCOLS, Embeddings, Protocol, evaluate, get_protocol, recall_table

__all__ = [
    'PROTOCOLS',
    'Embeddings',
    'Protocol',
    'RetrievalMetric',
    'both_ranks',
    'evaluate',
    'get_protocol',
    'median_rank',
    'ranks',
    'recall_at',
    'recall_table',
    'sum_recall',
]
