import sys
from pathlib import Path

# Helpers shared by test folders lie beside this file.
sys.path.insert(0, str(Path(__file__).parent))
