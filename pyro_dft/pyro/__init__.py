"""The Pyro front door."""

from pyro_dft.pyro.dft import DFT as DFT
from pyro_dft.pyro.kernel import DFTKernel as DFTKernel
from pyro_dft.pyro.many import fit_many as fit_many
