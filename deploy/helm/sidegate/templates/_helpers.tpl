{{/* Names and labels. */}}
{{- define "sidegate.name" -}}
{{ .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "sidegate.selector" -}}
app.kubernetes.io/name: {{ include "sidegate.name" . }}
{{- end }}

{{- define "sidegate.labels" -}}
{{ include "sidegate.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/*
For other charts: the sidecar as one entry of `initContainers`, its volumes, and the pod's security context. Their context is
`dict "values" .Values.sidegate "config" NAME-OF-CONFIGMAP "native" true`.
*/}}
{{- define "sidegate.sidecar" -}}
- name: sidegate
  image: {{ include "sidegate.image" .values.image }}
  imagePullPolicy: {{ .values.image.pullPolicy }}
  {{- if .native }}
  # Makes it a sidecar: starts before the app, ends after it.
  restartPolicy: Always
  {{- end }}
  args: ["run", "-c", "/etc/sidegate/sidegate.toml"{{ if .values.redis.enabled }}, "-c", "/etc/sidegate/redis.toml"{{ end }}]
  ports:
    - name: http
      containerPort: 8080
    - name: admin
      containerPort: 9180
  startupProbe:
    httpGet:
      path: /readyz
      port: admin
    periodSeconds: 1
    failureThreshold: 30
  readinessProbe:
    httpGet:
      path: /readyz
      port: admin
    periodSeconds: 2
    failureThreshold: 1
  livenessProbe:
    httpGet:
      path: /livez
      port: admin
    periodSeconds: 10
    timeoutSeconds: 3
  resources:
    {{- toYaml .values.resources | nindent 4 }}
  securityContext:
    {{- include "sidegate.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - name: sidegate-config
      mountPath: /etc/sidegate
      readOnly: true
    - name: sidegate-secrets
      mountPath: /run/secrets/sidegate
      readOnly: true
{{- end }}

{{- define "sidegate.volumes" -}}
- name: sidegate-config
  configMap:
    name: {{ .config }}
- name: sidegate-secrets
  secret:
    secretName: {{ .values.secretName }}
    defaultMode: 0440 # others cannot read it; the pod's fsGroup can
{{- end }}

{{- define "sidegate.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "sidegate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities:
  drop: ["ALL"]
{{- end }}

{{- define "sidegate.image" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}

{{/* What the ConfigMap holds. */}}
{{- define "sidegate.files" -}}
sidegate.toml: |
  {{- .values.config | nindent 2 }}
{{- if .values.redis.enabled }}
redis.toml: |
  [redis]
  url = "redis://{{ .redis }}:6379"
{{- end }}
{{- end }}
