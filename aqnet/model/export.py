"""python -m aqnet.model.export"""

from aqnet.errors import run
from aqnet.model.weights.export import main

if __name__ == "__main__":
    run(main)
