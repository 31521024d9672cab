"""Agents for other people's loops: Gymnasium's vector environments and Stable-Baselines3's `evaluate_policy`."""
