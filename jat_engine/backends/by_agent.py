"""A `BatchPlan` for backends that compute agents one by one: the same step as a `Plan`."""

from __future__ import annotations

import numpy as np

from .base import Backend, BatchPlan, BatchPrediction, Embedding, Plan


def decode_by_agent(backend: Backend, batch: BatchPlan) -> BatchPrediction:
    """`Backend.decode_batch` by `Backend.decode`."""
    embeddings = _embed(backend, batch)
    plan = Plan([], [], [], [], [], [], [])
    for agent, embedding in enumerate(embeddings):
        before = len(plan.embeddings)
        if batch.feeds_observation[agent]:
            plan.embeddings.append(batch.last_embeddings[agent])
        if batch.feeds_action[agent]:
            action, space = batch.last_actions[agent], batch.last_space
            if space.kind == "continuous":
                plan.embeddings.append(backend.embed_continuous(action, None))
            else:
                plan.embeddings.append(backend.embed_choice(int(action), space.size))
        plan.embeddings.append(embedding)
        plan.num_new.append(len(plan.embeddings) - before)
        plan.context_lens.append(int(batch.context_lens[agent]))
        plan.start_offsets.append(int(batch.start_offsets[agent]))
        plan.page_tables.append(batch.page_table[agent])
        plan.spaces.append(batch.space)
        plan.noise.append(None)
    values = np.stack([prediction.values for prediction in backend.decode(plan)])
    scores = values if batch.noise is None else values - batch.noise
    return BatchPrediction(values, scores.argmax(axis=1), embeddings)


def _embed(backend: Backend, batch: BatchPlan) -> list[Embedding]:
    values = list(batch.values)
    if batch.modality == "continuous":
        return [backend.embed_continuous(v, float(r)) for v, r in zip(values, batch.rewards, strict=True)]
    if batch.modality == "image":
        return backend.embed_images(values)
    missions = [None] * len(values) if batch.missions is None else list(batch.missions)
    return backend.embed_discrete(values, missions, batch.rewards.tolist())
