{{- /* These templates are .tpl so that every .yaml below deploy/ is YAML. */ -}}
{{- if .Values.enabled }}
{{- $name := include "sidegate.name" . }}
{{- $native := ne .Values.app.image "" }}
{{- $context := dict "values" .Values "config" $name "native" $native "redis" (printf "%s-redis" $name) }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ $name }}
  labels:
    {{- include "sidegate.labels" . | nindent 4 }}
data:
  {{- include "sidegate.files" $context | nindent 2 }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    {{- include "sidegate.labels" . | nindent 4 }}
spec:
  replicas: {{ .Values.replicas }}
  selector:
    matchLabels:
      {{- include "sidegate.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "sidegate.labels" . | nindent 8 }}
    spec:
      terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      shareProcessNamespace: false
      {{- with .Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "sidegate.podSecurity" . | nindent 8 }}
      {{- if gt (int .Values.replicas) 1 }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "sidegate.selector" . | nindent 14 }}
      {{- end }}
      {{- if $native }}
      initContainers:
        {{- include "sidegate.sidecar" $context | nindent 8 }}
      containers:
        - name: app
          image: {{ .Values.app.image }}
          {{- with .Values.app.env }}
          env:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          # The kubelet cannot reach loopback, so this goes through sidegate, on a public path.
          readinessProbe:
            httpGet:
              path: {{ .Values.app.probePath }}
              port: 8080
              httpHeaders:
                - name: Host
                  value: {{ .Values.app.probeHost }}
            periodSeconds: 5
            timeoutSeconds: 2
          lifecycle:
            preStop:
              sleep:
                seconds: {{ .Values.app.preStopSeconds }}
          resources:
            {{- toYaml .Values.app.resources | nindent 12 }}
          securityContext:
            {{- include "sidegate.containerSecurity" . | nindent 12 }}
      {{- else }}
      containers:
        {{- include "sidegate.sidecar" $context | nindent 8 }}
      {{- end }}
      volumes:
        {{- include "sidegate.volumes" $context | nindent 8 }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  labels:
    {{- include "sidegate.labels" . | nindent 4 }}
spec:
  selector:
    {{- include "sidegate.selector" . | nindent 4 }}
  ports:
    - name: http
      port: {{ .Values.service.port }}
      targetPort: http
{{- if gt (int .Values.replicas) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  labels:
    {{- include "sidegate.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .Values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "sidegate.selector" . | nindent 6 }}
{{- end }}
{{- if .Values.podMonitor.enabled }}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ $name }}
  labels:
    {{- include "sidegate.labels" . | nindent 4 }}
    {{- with .Values.podMonitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels:
      {{- include "sidegate.selector" . | nindent 6 }}
  podMetricsEndpoints:
    - port: admin
      path: /metrics
      interval: {{ .Values.podMonitor.interval }}
{{- end }}
{{- end }}
