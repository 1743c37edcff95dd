"""What is kept of each neuron: small mergeable objects that one pass fills."""
from .base import Statistic
from .built_in import Moments, RoleMaximum, moments

__all__ = ['Statistic', 'Moments', 'RoleMaximum', 'moments']
