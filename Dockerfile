# A host for TPUs, GPUs or CPUs:
#   docker build --build-arg EXTRA=tpu -t isoflop .        EXTRA: tpu, gpu, or cpu for none
#   docker run --privileged --net=host -v "$PWD/runs:/isoflop/runs" isoflop train.py --config configs/smoke.py
FROM python:3.13-slim
ARG EXTRA=cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /isoflop
COPY requirements.txt constraints-py313.txt ./
RUN pip install --no-cache-dir -c constraints-py313.txt -r requirements.txt && \
    case "$EXTRA" in \
      cpu) ;; \
      tpu) pip install --no-cache-dir -c constraints-py313.txt "jax[tpu]" ;; \
      gpu) pip install --no-cache-dir -c constraints-py313.txt "jax[cuda12]" ;; \
      *) echo "EXTRA=$EXTRA: must be cpu, tpu or gpu" >&2; exit 2 ;; \
    esac
COPY . .
ENTRYPOINT ["python"]
CMD ["train.py"]
