"""The fields of a JobSet that its back end may write: our list of their kinds, in JSON Schema.

Made by hand after the published custom resource jobset.x-k8s.io/v1alpha2: kubernetes-sigs/jobset (Apache 2),
config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml at commit 01078527ec43. That file has 748 kB; here is
what bears on us. A field that is not listed is refused, as kubectl refuses one that it lacks. A pod's
host name may have 63 characters (RFC 1123).
"""

INT32 = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}  # labels, annotations, node selectors
QUANTITY = {
  "anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d+(\.\d+)?[kMGTPE]?i?$"}]
}


def fields(required: tuple[str, ...] = (), **properties) -> dict:
  """An object of these fields and no other."""
  return {
    "type": "object", "properties": properties, "required": list(required),
    "additionalProperties": False,
  }  # fmt: skip


FIELD_REF = fields(("fieldPath",), apiVersion=TEXT, fieldPath=TEXT)
VARIABLE = fields(("name",), name=TEXT, value=TEXT, valueFrom=fields(fieldRef=FIELD_REF))
CONTAINER = fields(
  ("name",),
  name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
  image=TEXT,
  command={"type": "array", "items": TEXT},
  env={"type": "array", "items": VARIABLE},
  resources=fields(limits={"type": "object", "additionalProperties": QUANTITY}),
)
TOLERATION = fields(
  key=TEXT,
  operator={"enum": ["Equal", "Exists"]},
  value=TEXT,
  effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
)
POD = fields(
  ("containers",),
  containers={"type": "array", "items": CONTAINER, "minItems": 1},
  nodeSelector=TEXTS,
  restartPolicy={"enum": ["Never", "OnFailure"]},  # those that a Job takes
  serviceAccountName=TEXT,
  tolerations={"type": "array", "items": TOLERATION},
)
JOB = fields(
  ("template",),
  backoffLimit=INT32,
  completionMode={"enum": ["Indexed", "NonIndexed"]},
  completions=INT32,
  parallelism=INT32,
  template=fields(metadata=fields(labels=TEXTS, annotations=TEXTS), spec=POD),
)
REPLICATED = fields(
  ("name", "template"), name=TEXT, replicas=INT32, template=fields(metadata=fields(), spec=JOB)
)
SCHEMA = fields(
  ("apiVersion", "kind", "metadata", "spec"),
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=fields(("name",), name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
  spec=fields(
    failurePolicy=fields(
      maxRestarts=INT32, restartStrategy={"enum": ["Recreate", "BlockingRecreate"]}
    ),
    replicatedJobs={"type": "array", "items": REPLICATED},
  ),
)
HOST_NAME = 63
