"""What is kept of each neuron: small mergeable objects that one pass fills."""
from .base import Moments, RoleMaximum, Statistic, moments

__all__ = ['Statistic', 'Moments', 'RoleMaximum', 'moments']
