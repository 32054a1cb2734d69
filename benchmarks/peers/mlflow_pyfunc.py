"""`mlflow models serve` of a pyfunc model. `python mlflow_pyfunc.py FOLDER` saves the model."""

import base64
import os
import sys

import mlflow
import numpy as np


class Classifier(mlflow.pyfunc.PythonModel):
    def load_context(self, context: object) -> None:
        from classifier import open_session

        self.session = open_session()

    def predict(self, context: object, model_input: list[str]) -> list[list[float]]:
        from classifier import classify, pixels, size

        files = [base64.b64decode(text) for text in model_input]
        return classify(self.session, np.stack([pixels(file, size(self.session)) for file in files]))


if __name__ == "__main__":
    mlflow.pyfunc.save_model(
        sys.argv[1], python_model=Classifier(), artifacts={"model": os.environ["MODEL"]}, pip_requirements=[]
    )
