"Learn, and do, malaria cell classification with fastai."
import warnings

# fastai 2.8 compiles a function while it is imported, and torch calls that deprecated; nobody here can mend it
warnings.filterwarnings('ignore', '`torch.jit.script`', FutureWarning)
# a Jupyter without ipywidgets shows progress as text; that is fine
warnings.filterwarnings('ignore', 'IProgress not found')
