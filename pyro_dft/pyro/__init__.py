"""The Pyro front door."""

from pyro_dft.pyro.dft import DFT as DFT
from pyro_dft.pyro.kernel import DFTKernel as DFTKernel
