{{- define "evergrant.labels" -}}
{app.kubernetes.io/name: evergrant, app.kubernetes.io/component: {{ . }}}
{{- end }}

{{- define "evergrant.image" -}}
image: {{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- if ne .Values.image.pullPolicy "IfNotPresent" }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}
{{- end }}

{{- define "evergrant.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- /* What every pod has; takes (root, component, its values). */ -}}
{{- define "evergrant.pod" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $values := index . 2 -}}
automountServiceAccountToken: false
{{- if $root.Values.keyService.url }}
serviceAccountName: {{ and (eq $component "prepare") $root.Values.plain | ternary "worker" $component }}
{{- end }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- if and (ne $component "prepare") $root.Values.topologyKeys }}
topologySpreadConstraints:
{{- range $root.Values.topologyKeys }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "evergrant.labels" $component }}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* A secret's file belongs to root, and a key file has to belong to the process and be closed to others. */ -}}
{{- define "evergrant.keyFile" -}}
- name: key-file
  {{- include "evergrant.image" . | nindent 2 }}
  command: [install, -m, "0600", /run/secrets/keys/keys.json, /keys/keys.json]
  {{- include "evergrant.container" . | nindent 2 }}
  resources: {{ toJson .Values.initResources }}
  volumeMounts:
    - {name: secret-keys, mountPath: /run/secrets/keys, readOnly: true}
    - {name: keys, mountPath: /keys}
{{- end }}

{{- /* Takes (root, the secret of the key file, that of the password). */ -}}
{{- define "evergrant.volumes" -}}
{{- $root := index . 0 -}}
{{- if not $root.Values.keyService.url }}
- {name: secret-keys, secret: {secretName: {{ index . 1 }}, defaultMode: 0440}}
{{- end }}
- {name: database, secret: {secretName: {{ index . 2 }}, defaultMode: 0440}}
- {name: keys, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- {name: tmp, emptyDir: {}}
{{- end }}

{{- /* Takes the name of the port. */ -}}
{{- define "evergrant.probes" -}}
startupProbe: {httpGet: {path: /livez, port: {{ . }}}, periodSeconds: 2, failureThreshold: 60}
livenessProbe: {httpGet: {path: /livez, port: {{ . }}}, periodSeconds: 10, timeoutSeconds: 5}
readinessProbe: {httpGet: {path: /readyz, port: {{ . }}}, periodSeconds: 5, timeoutSeconds: 5}
{{- end }}

{{- /* Takes (kind, component, its values). */ -}}
{{- define "evergrant.scaling" -}}
{{- $component := index . 1 }}{{ $values := index . 2 -}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $component }}
spec:
  maxUnavailable: {{ $values.disruption.maxUnavailable }}
  selector:
    matchLabels: {{ include "evergrant.labels" $component }}
{{- if $values.autoscaling.enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $component }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: {{ index . 0 }}, name: {{ $component }}}
  minReplicas: {{ $values.autoscaling.minReplicas }}
  maxReplicas: {{ $values.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ $values.autoscaling.cpuPercent }}}}
{{- end }}
{{- end }}

{{- /* One destination of a policy: takes a port and where it leads. */ -}}
{{- define "evergrant.way" -}}
- ports: [{port: {{ .port }}}]
{{- with .to }}
  to: {{ toJson . }}
{{- end }}
{{- end }}

{{- /* Takes (root, the role in the database). */ -}}
{{- define "evergrant.database" -}}
{{- $database := (index . 0).Values.database -}}
{{- $hosts := list }}
{{- if $database.standbys }}
{{- range prepend $database.standbys $database.host }}{{ $hosts = append $hosts (print "host=" .) }}{{ end }}
{{- end }}
{{- $query := join "&" (compact (append $hosts $database.parameters)) -}}
postgresql+asyncpg://{{ index . 1 }}@{{ if not $hosts }}{{ $database.host }}{{ end }}/{{ $database.name }}{{ with $query }}?{{ . }}{{ end }}
{{- end }}

{{- /* What all processes have in common, as lines NAME: "value". */ -}}
{{- define "evergrant.settings" -}}
{{- $url := include "evergrant.database" (list . .Values.database.roles.owner) }}
{{- $settings := merge (dict "EVERGRANT_DATABASE_URL" $url "EVERGRANT_DATABASE_PASSWORD_FILE" "/run/secrets/database/password") .Values.settings }}
{{- with .Values.keyService.url }}{{ $_ := set $settings "EVERGRANT_KEY_SERVICE" . }}{{ end }}
{{- if and .Values.ingress.enabled .Values.ingress.gatewayHost (not (hasKey $settings "EVERGRANT_GATEWAY_PUBLIC_URL")) }}
{{- $_ := set $settings "EVERGRANT_GATEWAY_PUBLIC_URL" (printf "https://%s" .Values.ingress.gatewayHost) }}
{{- end }}
{{- with .Values.otlp.endpoint }}{{ $_ := set $settings "OTEL_EXPORTER_OTLP_ENDPOINT" . }}{{ end }}
{{- range $name := keys $settings | sortAlpha }}
{{ $name }}: {{ get $settings $name | toString | toJson }}
{{- end }}
{{- end }}

{{- /* Takes (root, component, its values): the annotations of a pod. */ -}}
{{- define "evergrant.annotations" -}}
{{- $root := index . 0 }}{{ $values := index . 2 }}{{ $annotations := deepCopy $values.podAnnotations }}
{{- if not $root.Values.plain }}
{{- $seen := list $root.Values.settings $root.Values.database $root.Values.keyService.url $root.Values.otlp $values.settings | toJson }}
{{- $_ := set $annotations "evergrant/settings" (sha256sum $seen) }}
{{- end }}
{{- with $annotations }}
annotations: {{ toJson . }}
{{- end }}
{{- end }}
