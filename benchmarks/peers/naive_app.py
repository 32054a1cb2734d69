"""The app that everyone writes first. `uvicorn naive_app:app`"""

from classifier import classify, open_session, pixels, size
from fastapi import FastAPI, UploadFile

app = FastAPI()
session = open_session()


@app.post("/predict")
async def predict(file: UploadFile) -> dict:
    image = pixels(await file.read(), size(session))
    return {"probabilities": classify(session, image[None])[0]}


@app.post("/predict-in-thread")
def predict_in_thread(file: UploadFile) -> dict:
    """The same off the event loop, which stays free to answer: in a thread of the framework's pool."""
    image = pixels(file.file.read(), size(session))
    return {"probabilities": classify(session, image[None])[0]}


@app.get("/health")
async def health() -> dict:
    return {"status": "ok"}
