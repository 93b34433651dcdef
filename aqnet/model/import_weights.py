"""python -m aqnet.model.import_weights"""

from aqnet.errors import run
from aqnet.model.weights.import_weights import main

if __name__ == "__main__":
    run(main)
