"""The app that everyone writes first. `uvicorn naive_app:app`"""

from classifier import classify, open_session, pixels, size
from fastapi import FastAPI, UploadFile

app = FastAPI()
session = open_session()


@app.post("/predict")
async def predict(file: UploadFile) -> dict:
    image = pixels(await file.read(), size(session))
    return {"probabilities": classify(session, image[None])[0]}


@app.get("/health")
async def health() -> dict:
    return {"status": "ok"}
