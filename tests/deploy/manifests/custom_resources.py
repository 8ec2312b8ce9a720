"""Schemas of the custom resources, which Kubernetes' own do not know: strict, and only the fields in use.

Written from the documentation of KEDA 2.15 (ScaledObject, TriggerAuthentication, trigger `rabbitmq`) and of the
Prometheus Operator (monitoring.coreos.com/v1).
"""

import jsonschema


def exactly(required, optional=None):
    """Makes the schema of an object with these fields and no others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": sorted(required), "additionalProperties": False}


NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
SECONDS = {"type": "integer", "minimum": 0}
COUNT = {"type": "integer", "minimum": 0}
DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}
BOOLEAN_TEXT = {"enum": ["true", "false"]}
METADATA = exactly({"name": NAME}, {"namespace": NAME, "labels": TEXTS, "annotations": TEXTS})


def some(items):
    return {"type": "array", "items": items, "minItems": 1}


def between(least, most):
    return {"type": "integer", "minimum": least, "maximum": most}


# As in autoscaling/v2, to which KEDA hands them on.
POLICY = exactly(
    {
        "type": {"enum": ["Pods", "Percent"]},
        "value": {"type": "integer", "minimum": 1},
        "periodSeconds": between(1, 1800),
    }
)
RULES = exactly(
    {},
    {
        "stabilizationWindowSeconds": between(0, 3600),
        "policies": some(POLICY),
        "selectPolicy": {"enum": ["Max", "Min", "Disabled"]},
    },
)

# KEDA takes every value of a trigger as text.
RABBITMQ = exactly(
    {
        "queueName": TEXT,
        "mode": {"enum": ["QueueLength", "MessageRate"]},
        "value": {"type": "string", "pattern": "^[0-9]+([.][0-9]+)?$"},
    },
    {
        "protocol": {"enum": ["auto", "amqp", "http"]},
        "vhostName": TEXT,
        "activationValue": {"type": "string", "pattern": "^[0-9]+([.][0-9]+)?$"},
        "excludeUnacknowledged": BOOLEAN_TEXT,
        "unsafeSsl": BOOLEAN_TEXT,
        "timeout": {"type": "string", "pattern": "^[0-9]+$"},
    },
)
TRIGGER = exactly(
    {"type": {"const": "rabbitmq"}, "metadata": RABBITMQ},
    {"name": TEXT, "authenticationRef": exactly({"name": NAME})},
)

SCHEMAS = {
    ("keda.sh/v1alpha1", "ScaledObject"): exactly(
        {
            "scaleTargetRef": exactly({"name": NAME}, {"apiVersion": TEXT, "kind": TEXT}),
            "triggers": some(TRIGGER),
        },
        {
            "pollingInterval": SECONDS,
            "cooldownPeriod": SECONDS,
            "initialCooldownPeriod": SECONDS,
            "idleReplicaCount": COUNT,
            "minReplicaCount": COUNT,
            "maxReplicaCount": COUNT,
            "fallback": exactly({"failureThreshold": COUNT, "replicas": COUNT}),
            "advanced": exactly(
                {},
                {
                    "restoreToOriginalReplicaCount": {"type": "boolean"},
                    "horizontalPodAutoscalerConfig": exactly(
                        {}, {"name": NAME, "behavior": exactly({}, {"scaleUp": RULES, "scaleDown": RULES})}
                    ),
                },
            ),
        },
    ),
    ("keda.sh/v1alpha1", "TriggerAuthentication"): exactly(
        {"secretTargetRef": some(exactly({"parameter": TEXT, "name": NAME, "key": TEXT}))}
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): exactly(
        {
            "selector": exactly({"matchLabels": TEXTS}),
            "endpoints": some(exactly({"port": TEXT}, {"path": TEXT, "interval": DURATION, "scrapeTimeout": DURATION})),
        },
        {"namespaceSelector": exactly({"matchNames": {"type": "array", "items": NAME}})},
    ),
}


def validate(document):
    """Validates one document; tells whether its kind is known here."""
    kind = (document["apiVersion"], document["kind"])
    if kind not in SCHEMAS:
        return False
    head = {"apiVersion": {"const": kind[0]}, "kind": {"const": kind[1]}, "metadata": METADATA}
    whole = exactly(head | {"spec": SCHEMAS[kind]})
    jsonschema.Draft202012Validator(whole).validate(document)
    return True
